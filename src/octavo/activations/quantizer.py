"""The quantizer of a layer's inputs, and how it is put before a layer and taken off again.

The quantizer is a submodule of the layer whose inputs it rounds; a plain function, registered as a
hook before the layer's calls, looks it up there. Therefore copies, state dicts and optimizers treat
it like any other part of the model, and the user's code stays untouched.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from octavo.errors import PlanError
from octavo.network.forward import first_keyword

__all__ = [
    "LEAST_SCALE",
    "InputFormat",
    "InputQuantizer",
    "attach_quantizer",
    "input_formats",
    "input_quantizers",
    "install_quantizers",
    "module_title",
    "quantized_already",
    "remove_quantizers",
    "round_first",
    "scale_key",
    "scales",
    "store_effective_scales",
]

NAME = "input_quantizer"  # the attribute of the layer that holds its quantizer
LEAST_SCALE = 2.0**-24
FLOAT32_BIAS = 127  # the exponent field of float32 holds the exponent plus this
FLOAT32_MANTISSA = 23  # bits below the exponent field


@dataclass(frozen=True)
class InputFormat:
    """The integers that a layer's inputs are rounded to; the scale that they are multiplied with is
    not part of it.

    Attributes:
        bits: 2 to 8.
        signed: True if there are integers below zero. If not, there are twice as many above it.
        power_of_two: True if the scale is a power of two.

    """

    bits: int
    signed: bool
    power_of_two: bool = False

    @property
    def lowest(self) -> int:
        """The lowest integer."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The highest integer."""
        return (1 << (self.bits - self.signed)) - 1


class InputQuantizer(nn.Module):
    """A module that rounds its inputs to the nearest multiple of a scale, a tie to the even
    multiple, between the lowest and the highest multiple of the format.

    Args:
        input_format: the multiples that there are.
        scale: the distance of neighbouring multiples; a parameter of the model.
        learned: True if the scale takes part in training.

    """

    def __init__(
        self, input_format: InputFormat, scale: float = 1.0, *, learned: bool = True
    ) -> None:
        super().__init__()
        self.format = input_format
        # The parameter is the scale. Its name is `step`, the word of LSQ's paper, because the name
        # is a key in state dicts and in packed files, and these are read for ever.
        step = torch.tensor(scale, dtype=torch.float32, device="cpu")
        self.step = nn.Parameter(step, requires_grad=learned)

    def effective_scale(self) -> Tensor:
        """Return the scale that inputs are rounded with: the parameter made positive and, if the
        format says so, a power of two. The gradient passes straight through to the parameter.
        """
        with torch.no_grad():
            scale = self.step.float().clamp(min=LEAST_SCALE)
            if self.format.power_of_two:
                scale = _nearest_power_of_two(scale)
        return scale + (self.step - self.step.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Round ``inputs``; the result has the same shape and type."""
        apply: Any = _Round.apply
        result: Tensor = apply(
            inputs, self.effective_scale(), self.format.lowest, self.format.highest
        )
        return result

    def extra_repr(self) -> str:
        """Return the text that torch prints between the parentheses."""
        scale = float(self.effective_scale().detach())
        return f"bits={self.format.bits}, signed={self.format.signed}, scale={scale:.4g}"


def _nearest_power_of_two(scale: Tensor) -> Tensor:
    """Round positive float32 values to the power of two with the nearest logarithm."""
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa 2^exponent, 1/2 <= mantissa < 1
    exponent = exponent - (mantissa < math.sqrt(0.5)).int()
    # A float32 with an empty mantissa is a power of two: exact, where exp2 may be off by one bit.
    return ((exponent + FLOAT32_BIAS) << FLOAT32_MANTISSA).view(torch.float32)


class _Round(torch.autograd.Function):
    """``clamp(round(v / s), lowest, highest) s`` with LSQ's gradients (arXiv 1902.08153)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(inputs, scale)
        ctx.range = lowest, highest
        return _ratio(inputs, scale).round_().clamp_(lowest, highest).mul_(scale).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        inputs, scale = ctx.saved_tensors
        lowest, highest = ctx.range
        ratio = _ratio(inputs, scale)
        # Equation 5: the gradient passes where lowest < v / s < highest, and is 0 elsewhere.
        by_input = _inside(gradient.to(ratio), ratio, lowest, highest).to(inputs.dtype)
        if not ctx.needs_input_grad[1]:
            return by_input, None, None, None
        # Equation 3: round(v / s) - v / s inside of the range, the nearer end of it outside.
        rounded = ratio.round().clamp_(lowest, highest)
        by_scale = rounded.sub_(_inside(ratio, ratio, lowest, highest))
        # Section 2.2: times 1 / sqrt(N Q), where N is the number of values in one input of the
        # batch, and Q is the highest integer.
        features = inputs.numel() // max(1, inputs.shape[0]) if inputs.dim() > 1 else inputs.numel()
        total = (by_scale * gradient).sum() / math.sqrt(max(1, features) * highest)
        return by_input, total.to(scale.dtype), None, None


def _inside(values: Tensor, ratio: Tensor, lowest: int, highest: int) -> Tensor:
    """Return ``values`` where ``lowest < ratio < highest`` and 0 elsewhere.

    This kernel of torch, made for another purpose, is ten times as fast as a mask in bool.
    """
    result: Tensor = torch.ops.aten.hardtanh_backward(values, ratio, lowest, highest)
    return result


def _ratio(inputs: Tensor, scale: Tensor) -> Tensor:
    """Divide inputs by the scale, in float32 at least."""
    return (inputs.float() if inputs.element_size() < 4 else inputs) / scale


def install_quantizers(
    model: nn.Module, formats: Mapping[str, InputFormat], *, learned: bool = True
) -> None:
    """Quantize the inputs of the modules that ``formats`` names, with scales of 1. A module whose
    inputs are quantized in this format already keeps its quantizer.
    """
    present = input_formats(model)
    for name, input_format in formats.items():
        if present.get(name) != input_format:
            quantizer = InputQuantizer(input_format, learned=learned)
            attach_quantizer(model.get_submodule(name), quantizer)


def remove_quantizers(model: nn.Module) -> None:
    """Remove every quantizer of layer inputs from the model, in place; layers see their inputs in
    float again. A model without quantizers stays as it is.
    """
    for name in input_quantizers(model):
        module = model.get_submodule(name)
        delattr(module, NAME)
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _round_input]:
            del module._forward_pre_hooks[key]
            del module._forward_pre_hooks_with_kwargs[key]


def input_quantizers(model: nn.Module) -> dict[str, InputQuantizer]:
    """Find the model's quantizers, by the name of the module whose inputs each of them rounds."""
    quantizers = {}
    for name, module in model.named_modules():
        quantizer = module._modules.get(NAME)
        if isinstance(quantizer, InputQuantizer):
            quantizers[name] = quantizer
    return quantizers


def input_formats(model: nn.Module) -> dict[str, InputFormat]:
    """Return the format of each module's quantized inputs, by the module's name."""
    return {name: quantizer.format for name, quantizer in input_quantizers(model).items()}


def scale_key(name: str) -> str:
    """Return the key, in a model's state dict, of the scale for the inputs of ``name``."""
    return f"{name}.{NAME}.step".lstrip(".")


def scales(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are scales of inputs; they want no weight decay."""
    return [quantizer.step for quantizer in input_quantizers(model).values()]


@torch.no_grad()
def store_effective_scales(model: nn.Module) -> None:
    """Replace each learned scale by its effective value; outputs are unchanged."""
    for quantizer in input_quantizers(model).values():
        quantizer.step.copy_(quantizer.effective_scale())


def attach_quantizer(module: nn.Module, quantizer: InputQuantizer) -> None:
    """Round the inputs of ``module`` from now on, by this quantizer instead of any other."""
    if NAME not in module._modules:
        module.register_forward_pre_hook(_round_input, with_kwargs=True)
    device = next((parameter.device for parameter in module.parameters()), None)
    setattr(module, NAME, quantizer.to(device).train(module.training))


def _round_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Round the first argument of a call, as a hook before the call."""
    return round_first(module._modules[NAME], args, kwargs)  # type: ignore[arg-type]


def round_first(
    quantizer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Round the argument of a call that a layer multiplies with its weight."""
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    key = first_keyword(kwargs)
    return args, kwargs | {key: quantizer(kwargs[key])}


def module_title(name: str) -> str:
    """Return the name of a module in messages; a model has no name in itself."""
    return name or "the model itself"


def quantized_already(name: str) -> PlanError:
    """Return the error about a module whose inputs have a quantizer when they shall get one."""
    return PlanError(
        f"{module_title(name)}: its inputs are quantized already; "
        "call octavo.remove_quantizers(model) first"
    )
