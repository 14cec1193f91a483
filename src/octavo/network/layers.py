"""Which tensors of a model can be quantized, how they are laid out, which are tied, and which are
skipped and why.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from octavo.network.calling import hooked

__all__ = [
    "EMBEDDINGS",
    "MASKED",
    "NORMS",
    "ONE_WEIGHT",
    "TRANSPOSED",
    "Layer",
    "Skipped",
    "calling_modules",
    "channels_back",
    "channels_first",
    "count_macs",
    "find_inputs",
    "find_layers",
]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
ONE_WEIGHT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, *EMBEDDINGS)
SEVERAL_WEIGHTS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MASKED = "torch.nn.utils.prune masks it: call octavo.fold_masks(model) first"
PROJECTIONS = (
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
)  # MultiheadAttention's own


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
        """Groups of a transposed convolution, whose weight has its output channels second; 0 for
        every other layer.
        """
        return self.module.groups if isinstance(self.module, TRANSPOSED) else 0

    @property
    def places(self) -> list[tuple[nn.Module, str]]:
        """Every (module, attribute) that holds the parameter, each once."""
        return list(
            dict.fromkeys(
                [
                    (self.module, self.attribute),
                    *((module, attribute) for _, module, attribute in self.tied),
                ]
            )
        )


@dataclass(frozen=True)
class Skipped:
    """A parameter that stays in float, and why."""

    name: str
    weights: int
    reason: str


def channels_first(weight: Tensor, groups: int) -> Tensor:
    """``weight`` with its output channels first: a transposed convolution's is turned around, any
    other is itself (groups 0).
    """
    if not groups:
        return weight
    inputs, outputs, *kernel = weight.shape
    return (
        weight.reshape(groups, inputs // groups, outputs, *kernel)
        .transpose(1, 2)
        .reshape(-1, inputs // groups, *kernel)
    )


def channels_back(weight: Tensor, groups: int) -> Tensor:
    """Undo :func:`channels_first`."""
    if not groups:
        return weight
    outputs, inputs, *kernel = weight.shape
    return (
        weight.reshape(groups, outputs // groups, inputs, *kernel)
        .transpose(1, 2)
        .reshape(-1, outputs // groups, *kernel)
    )


def find_layers(model: nn.Module) -> tuple[list[Layer], list[Skipped]]:
    """Every tensor of ``model`` that can be quantized, in registration order, and every parameter
    that cannot, with the reason.

    A parameter with several places is one layer, named after the first place where it is a weight
    that octavo knows.
    """
    shared: dict[int, list[_Place]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if not isinstance(
            module, parametrize.ParametrizationList
        ):  # reported at the module that it belongs to
            for place in _places(prefix, module):
                shared.setdefault(id(place.parameter), []).append(place)
    layers, skipped = [], []
    for places in shared.values():
        known = [place for place in places if not place.reason]
        if known and not any(place.forbidden for place in places):
            first = known[0]
            tied = [
                (place.full, place.module, place.attribute)
                for place in places
                if place is not first
            ]
            layers.append(
                Layer(first.name, first.module, first.attribute, first.full, first.parameter, tied)
            )
        else:
            worst = max(places, key=lambda place: (place.forbidden, bool(place.reason)))
            skipped.append(Skipped(places[0].full, _size(worst.parameter), worst.reason))
    return layers, skipped


@dataclass(frozen=True)
class _Place:
    """Where a module holds a parameter; ``reason`` says why it is no layer there, ``forbidden``
    that it must be none anywhere.
    """

    full: str
    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    reason: str
    forbidden: bool


def _places(prefix: str, module: nn.Module) -> Iterator[_Place]:
    """A module's own parameters."""
    parametrized = module.parametrizations.items() if parametrize.is_parametrized(module) else ()  # type: ignore[union-attr, operator]
    held = [
        (attribute, parameter, "its module is parametrized already")
        for attribute, p in parametrized
        for parameter in p.parameters()
    ]
    own = [
        (attribute, p, _obstacle(module, p))
        for attribute, p in module._parameters.items()
        if p is not None
    ]
    for attribute, parameter, obstacle in held + own:
        full = f"{prefix}.{attribute}".lstrip(".")
        name = full if isinstance(module, SEVERAL_WEIGHTS) or not prefix else prefix
        reason = obstacle or _why_float(module, attribute)
        yield _Place(full, name, module, attribute, parameter, reason, bool(obstacle))


def _obstacle(module: nn.Module, parameter: nn.Parameter) -> str:
    """Why a parameter cannot be quantized whatever it is, or ""."""
    kind = type(module).__name__
    if isinstance(parameter, nn.UninitializedParameter):
        return f"{kind} is lazy and has not seen an input yet"
    if not parameter.is_floating_point():
        return f"its type is {parameter.dtype}"
    if not parameter.numel():
        return "it is empty"
    if getattr(module, "max_norm", None) is not None:
        return f"the max_norm of {kind} rewrites it in every forward pass"
    return ""


def _why_float(module: nn.Module, attribute: str) -> str:
    """Why a parameter is no weight that is quantized, or ""."""
    kind = type(module).__name__
    if attribute.endswith("_orig") and attribute.removesuffix("_orig") + "_mask" in module._buffers:
        return MASKED
    if isinstance(module, ONE_WEIGHT) and attribute == "weight":
        return ""
    if isinstance(module, SEVERAL_WEIGHTS) and (
        attribute.startswith("weight_") or attribute in PROJECTIONS
    ):
        return ""
    if "bias" in attribute:
        return "biases stay in float"
    if "norm" in kind.lower():
        return "norms stay in float"
    if "quantizer" in kind.lower():
        return "scales of activations stay in float"
    return f"{kind}.{attribute} is not a kind of weight that octavo knows"


def _size(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, nn.UninitializedParameter) else parameter.numel()


def find_inputs(model: nn.Module) -> tuple[dict[str, nn.Module], list[Skipped]]:
    """The modules whose inputs can be quantized, by name, and those with weights whose inputs
    cannot, with the reason.
    """
    found, skipped = dict[str, nn.Module](), list[Skipped]()
    inside: set[nn.Module] = {
        module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)
    }
    for name, module in model.named_modules():
        if not isinstance(module, ONE_WEIGHT + SEVERAL_WEIGHTS):
            continue
        if reason := _why_no_input(module, inside):
            skipped.append(Skipped(name, sum(map(_size, module.parameters(recurse=False))), reason))
        else:
            found[name] = module
    return found, skipped


def _why_no_input(module: nn.Module, inside: set[nn.Module]) -> str:
    """Why no hook can quantize a layer's inputs, or ""."""
    kind = type(module).__name__
    if isinstance(module, EMBEDDINGS):
        return f"{kind} is given indices"
    if isinstance(module, SEVERAL_WEIGHTS):
        return f"{kind} multiplies what it computes inside, which no hook reaches"
    return "MultiheadAttention reads its weight without calling it" if module in inside else ""


def calling_modules(model: nn.Module, layers: Iterable[Layer]) -> dict[nn.Module, list[Layer]]:
    """The layers by the module whose calls show their inputs: every place of a tied layer; the
    attention itself for the weight of its output projection, which it reads without calling that
    module.
    """
    attention: dict[nn.Module, nn.Module] = {
        m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
    }
    found: dict[nn.Module, list[Layer]] = {}
    for layer in layers:
        for module in dict.fromkeys(module for module, _ in layer.places):
            found.setdefault(attention.get(module, module), []).append(layer)
    return found


def count_macs(layers: list[Layer], run: Callable[[], object]) -> dict[str, int]:
    """Multiply-accumulates that each layer spends in one forward pass, which ``run`` makes; layers
    not reached count 0.

    Every weight acts once per output position: a linear layer's positions are its output's rows, a
    convolution's the pixels of its output (of its input where transposed), a recurrent layer's its
    time steps. Embeddings multiply nothing.
    """
    counts = dict.fromkeys((layer.name for layer in layers), 0)
    named = {id(layer.weight): layer.name for layer in layers}
    modules = {module: None for layer in layers for module, _ in layer.places}

    def count(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        for weight, macs in _macs(module, args, kwargs, output):
            if id(weight) in named:
                counts[named[id(weight)]] += macs

    with (
        hooked(module.register_forward_hook(count, with_kwargs=True) for module in modules),
        torch.no_grad(),
    ):
        run()
    return counts


def _macs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Iterator[tuple[Tensor | None, int]]:
    """The weights of a module and the multiply-accumulates of each in one call."""
    if isinstance(module, nn.MultiheadAttention):
        yield from _attention_macs(
            module, **dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        )
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        given = args[0] if args else kwargs["input"]
        given = given.data if isinstance(given, PackedSequence) else given
        for attribute, weight in module._parameters.items():
            if weight is not None and attribute.startswith("weight_"):
                yield weight, weight.numel() * _rows(given)
    elif isinstance(module, TRANSPOSED):
        given = args[0] if args else kwargs["input"]
        yield module.weight, module.weight.numel() * (given.numel() // module.in_channels)
    elif isinstance(module, ONE_WEIGHT) and not isinstance(module, EMBEDDINGS):
        yield module.weight, module.weight.numel() * (output.numel() // module.weight.shape[0])


def _attention_macs(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **_: object
) -> Iterator[tuple[Tensor | None, int]]:
    """It reads the weight of its output projection without calling that module."""
    width, rows = module.embed_dim, (_rows(query), _rows(key), _rows(value))
    yield module.in_proj_weight, width * width * sum(rows)
    for weight, count in zip(
        (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight), rows, strict=True
    ):
        yield weight, 0 if weight is None else weight.numel() * count
    yield module.out_proj.weight, module.out_proj.weight.numel() * rows[0]


def _rows(tensor: Tensor) -> int:
    return tensor.numel() // tensor.shape[-1]
