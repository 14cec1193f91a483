"""What rounds a layer's inputs, and how it is put before a layer and taken off again.

The quantizer is a submodule of the layer whose input it rounds; a plain function, hooked before the
layer's calls, looks it up there. So copies, state dicts and optimizers have it like any other part
of the model, and nobody's code is touched.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = [
    "LEAST",
    "InputForm",
    "InputQuantizer",
    "attach",
    "first_argument",
    "input_forms",
    "input_quantizers",
    "install",
    "remove_quantizers",
    "round_first",
    "settle",
    "step_name",
    "steps",
]

NAME = "input_quantizer"  # of the submodule
LEAST = 2.0**-24  # the least step


@dataclass(frozen=True)
class InputForm:
    """How a layer's input is rounded, all but the step.

    Attributes:
        bits: 2 to 8.
        signed: whether there are levels below zero; without, there are twice as many above it.
        power_of_two: whether the step is one.

    """

    bits: int
    signed: bool
    power_of_two: bool = False

    @property
    def lowest(self) -> int:
        """The lowest level, in steps."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The highest level, in steps."""
        return (1 << (self.bits - self.signed)) - 1


class InputQuantizer(nn.Module):
    """Rounds to the nearest multiple of a step, a tie to the even one, from the form's lowest to
    its highest.

    Args:
        form: which multiples there are.
        step: the distance of neighbouring levels; a parameter of the model.
        learned: whether it takes part in training.

    """

    def __init__(self, form: InputForm, step: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        self.form = form
        self.step = nn.Parameter(torch.tensor(step), requires_grad=learned)

    def scale(self) -> Tensor:
        """The step as it is used: positive, and a power of two where the form says so; gradients
        pass straight through.
        """
        with torch.no_grad():
            step = self.step.float().clamp(min=LEAST)
            if self.form.power_of_two:  # of the nearest logarithm
                mantissa, exponent = torch.frexp(step)
                step = ((exponent - (mantissa < math.sqrt(0.5)).int() + 127) << 23).view(
                    torch.float32
                )
        return step + (self.step - self.step.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """The levels nearest to ``inputs``, same shape and type."""
        result: Tensor = _Round.apply(inputs, self.scale(), self.form.lowest, self.form.highest)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        """What torch prints of it."""
        return f"bits={self.form.bits}, signed={self.form.signed}, step={float(self.scale().detach()):.4g}"


class _Round(torch.autograd.Function):
    """``clamp(round(v / s)) s`` with LSQ's gradients (eqs. 3 and 5), that of the step times ``1 /
    sqrt(N Q)`` (section 2.2).

    ``N`` is the number of features: of values in one input of a batch.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
        ctx.save_for_backward(inputs, scale)
        ctx.range = lowest, highest
        return _ratio(inputs, scale).round_().clamp_(lowest, highest).mul_(scale).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (inputs, scale), (lowest, highest) = ctx.saved_tensors, ctx.range
        ratio = _ratio(inputs, scale)
        by_input = _inside(gradient.to(ratio), ratio, lowest, highest).to(inputs.dtype)
        if not ctx.needs_input_grad[1]:
            return by_input, None, None, None
        by_level = (
            ratio.round().clamp_(lowest, highest).sub_(_inside(ratio, ratio, lowest, highest))
        )
        features = inputs.numel() // max(1, inputs.shape[0]) if inputs.dim() > 1 else inputs.numel()
        by_step = (by_level * gradient).sum() / math.sqrt(max(1, features) * highest)
        return by_input, by_step.to(scale.dtype), None, None


def _inside(values: Tensor, ratio: Tensor, lowest: int, highest: int) -> Tensor:
    """``values`` where the ratio lies between the two, else 0; ten times as fast as by a mask in
    bool.
    """
    result: Tensor = torch.ops.aten.hardtanh_backward(values, ratio, lowest, highest)
    return result


def _ratio(inputs: Tensor, scale: Tensor) -> Tensor:
    """Inputs in steps, in float32 at least."""
    return (inputs.float() if inputs.element_size() < 4 else inputs) / scale


def install(model: nn.Module, forms: Mapping[str, InputForm], *, learned: bool = True) -> None:
    """Quantize the inputs of the modules that ``forms`` names, steps of 1, unless they are
    quantized in this form already.
    """
    there = input_forms(model)
    for name, form in forms.items():
        if there.get(name) != form:
            attach(model.get_submodule(name), InputQuantizer(form, learned=learned))


def remove_quantizers(model: nn.Module) -> None:
    """Take all quantizers off again: layers see what they are given."""
    for name in input_quantizers(model):
        module = model.get_submodule(name)
        delattr(module, NAME)
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _round_input]:
            del module._forward_pre_hooks[key]
            del module._forward_pre_hooks_with_kwargs[key]


def input_quantizers(model: nn.Module) -> dict[str, InputQuantizer]:
    """By the name of the module whose input each of them rounds."""
    owned = ((name, module._modules.get(NAME)) for name, module in model.named_modules())
    return {name: own for name, own in owned if isinstance(own, InputQuantizer)}


def step_name(name: str) -> str:
    """The key, in a model's state dict, of the step of the quantizer before the module of this
    name.
    """
    return f"{name}.{NAME}.step".lstrip(".")


def input_forms(model: nn.Module) -> dict[str, InputForm]:
    """How the inputs of the model's modules are rounded, by their names."""
    return {name: quantizer.form for name, quantizer in input_quantizers(model).items()}


def steps(model: nn.Module) -> list[nn.Parameter]:
    """The steps of the model's quantizers: weight decay has no business with them."""
    return [quantizer.step for quantizer in input_quantizers(model).values()]


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Let every step be what is used of it: what the network computes stays the same."""
    for quantizer in input_quantizers(model).values():
        quantizer.step.copy_(quantizer.scale())


def attach(module: nn.Module, quantizer: InputQuantizer) -> None:
    """Round what ``module`` is given, from now on."""
    if NAME not in module._modules:
        module.register_forward_pre_hook(_round_input, with_kwargs=True)
    device = next((parameter.device for parameter in module.parameters()), None)
    setattr(module, NAME, quantizer.to(device).train(module.training))


def _round_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the first one rounded."""
    return round_first(module._modules[NAME], args, kwargs)  # type: ignore[arg-type]


def round_first(
    quantizer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the one that a layer multiplies rounded."""
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    key = _key(kwargs)
    return args, kwargs | {key: quantizer(kwargs[key])}


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer multiplies, of the arguments of a call."""
    return args[0] if args else kwargs[_key(kwargs)]


def _key(kwargs: dict[str, Any]) -> str:
    return "input" if "input" in kwargs else next(iter(kwargs))
