"""Which tensors of a model can be quantized, how they are laid out, which are tied, and which are skipped and why."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Layer", "Skipped", "channels_back", "channels_first", "count_macs", "find_layers"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ONE_WEIGHT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Embedding, nn.EmbeddingBag)
SEVERAL_WEIGHTS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # MultiheadAttention's own


@dataclass(frozen=True)
class Layer:
    """One tensor that can be quantized.

    Attributes:
        name: the plan's key: the module's name where it has one weight, else the parameter's.
        module: the module that owns the parameter.
        attribute: the parameter's name in the module.
        parameter: the parameter's full name, its key in the model's state dict.
        weight: the parameter.
        tied: the other places of the same parameter: (full name, module, attribute).

    """

    name: str
    module: nn.Module
    attribute: str
    parameter: str
    weight: nn.Parameter
    tied: list[tuple[str, nn.Module, str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The module's type, in lower case: ``conv2d``, ``linear``, ``lstm``."""
        return type(self.module).__name__.lower()

    @property
    def groups(self) -> int:
        """Groups of a transposed convolution, whose weight has its output channels second; 0 for every other layer."""
        return self.module.groups if isinstance(self.module, TRANSPOSED) else 0

    @property
    def places(self) -> list[tuple[nn.Module, str]]:
        """Every (module, attribute) that holds the parameter."""
        return [(self.module, self.attribute), *((module, attribute) for _, module, attribute in self.tied)]


@dataclass(frozen=True)
class Skipped:
    """A parameter that stays in float, and why."""

    name: str
    weights: int
    reason: str


def channels_first(weight: Tensor, groups: int) -> Tensor:
    """``weight`` with its output channels first: a transposed convolution's is turned around, any other is itself (groups 0)."""
    if not groups:
        return weight
    inputs, outputs, *kernel = weight.shape
    return weight.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).reshape(-1, inputs // groups, *kernel)


def channels_back(weight: Tensor, groups: int) -> Tensor:
    """Undo :func:`channels_first`."""
    if not groups:
        return weight
    outputs, inputs, *kernel = weight.shape
    return weight.reshape(groups, outputs // groups, inputs, *kernel).transpose(1, 2).reshape(-1, outputs // groups, *kernel)


def find_layers(model: nn.Module) -> tuple[list[Layer], list[Skipped]]:
    """Every tensor of ``model`` that can be quantized, in registration order, and every parameter that cannot, with the reason.

    A parameter that several modules share is one layer, named after its first place.
    """
    layers: dict[int, Layer] = {}
    skipped: dict[int, Skipped] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # reported at the module that it belongs to
        for attribute, parameter, reason in _parameters(module):
            full = f"{prefix}.{attribute}".lstrip(".")
            known = layers.get(id(parameter))
            if reason:
                skipped.setdefault(id(parameter), Skipped(full, _size(parameter), reason))
            elif known:
                known.tied.append((full, module, attribute))
            else:
                name = full if isinstance(module, SEVERAL_WEIGHTS) or not prefix else prefix
                layers[id(parameter)] = Layer(name, module, attribute, full, parameter)
    return list(layers.values()), [skip for key, skip in skipped.items() if key not in layers]


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, str]]:
    """A module's own parameters: (attribute, parameter, why it is skipped or "")."""
    if parametrize.is_parametrized(module):
        for attribute, held in module.parametrizations.items():  # type: ignore[union-attr, operator]
            yield from ((attribute, parameter, "its module is parametrized already") for parameter in held.parameters())
    for attribute, parameter in module._parameters.items():
        if parameter is not None:
            yield attribute, parameter, _why_skipped(module, attribute, parameter)


def _why_skipped(module: nn.Module, attribute: str, parameter: nn.Parameter) -> str:
    """Why a parameter cannot be quantized, or ""."""
    kind = type(module).__name__
    if isinstance(parameter, nn.UninitializedParameter):
        return f"{kind} is lazy and has not seen an input yet"
    if not parameter.is_floating_point():
        return f"its type is {parameter.dtype}"
    if isinstance(module, ONE_WEIGHT) and attribute == "weight":
        return "" if parameter.numel() else "it is empty"
    if isinstance(module, SEVERAL_WEIGHTS) and (attribute.startswith("weight_") or attribute in PROJECTIONS):
        return ""
    if "bias" in attribute:
        return "biases stay in float"
    if "norm" in kind.lower():
        return "norms stay in float"
    return f"{kind}.{attribute} is not a kind of weight that octavo knows"


def _size(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, nn.UninitializedParameter) else parameter.numel()


def count_macs(layers: list[Layer], run: Callable[[], object]) -> dict[str, int]:
    """Multiply-accumulates that each layer spends in one forward pass, which ``run`` makes; layers not reached count 0.

    Every weight acts once per output position: a linear layer's positions are its output's rows, a convolution's the
    pixels of its output (of its input where transposed), a recurrent layer's its time steps. Embeddings multiply nothing.
    """
    counts = dict.fromkeys((layer.name for layer in layers), 0)

    def count(layer: Layer, inputs: tuple[Tensor, ...], output: object) -> None:
        counts[layer.name] += _positions(layer, inputs[0], output) * layer.weight.numel()

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, layer=layer: count(layer, inputs, output))
        for layer in layers
        for module, _ in layer.places
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _positions(layer: Layer, given: Tensor, output: object) -> int:
    """How often each weight of a layer acts in one call on the tensor ``given``."""
    if isinstance(layer.module, nn.Embedding | nn.EmbeddingBag):
        return 0
    if isinstance(layer.module, TRANSPOSED):
        return given.numel() // layer.module.in_channels
    if isinstance(output, Tensor) and not isinstance(layer.module, nn.RNNCellBase):
        return output.numel() // layer.weight.shape[0]
    return given.numel() // given.shape[-1]
