"""The tensors of a model that can be quantized: how they are laid out and which are tied, and why
the other parameters are skipped.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from octavo.errors import PlanError
from octavo.network.attachment import is_attached
from octavo.network.kinds import ONE_WEIGHT, Form, form_of, kind_of
from octavo.network.memory import memory_of, overlapping

__all__ = [
    "ALWAYS_FLOAT",
    "Layer",
    "Skipped",
    "calling_modules",
    "channels_back",
    "channels_first",
    "find_inputs",
    "find_layers",
    "free_layers",
]

ATTACHED = (
    "this model is in an unfinished Incremental or Surgery already; call its finish(), or make the "
    "model anew"
)
PARAMETRIZED = "its module is parametrized already"
MASKED = "torch.nn.utils.prune masks it: call octavo.fold_masks(model) first"
BIAS = "biases stay in float"
NORM = "norms stay in float"
SCALE = "scales of activations stay in float"
OVERLAP = "it shares memory with another parameter, in another layout"
ALWAYS_FLOAT = frozenset({BIAS, NORM, SCALE})  # reasons of parameters that are no weights


@dataclass(frozen=True)
class Layer:
    """One tensor that can be quantized.

    Attributes:
        name: the plan's key: the module's name where it has one weight, else the parameter's.
        module: the module that owns the parameter.
        attribute: the parameter's name in the module.
        parameter: the parameter's full name, its key in the model's state dict.
        weight: the parameter.
        tied: the other modules that have the same parameter, or one that is tied to it in memory
            (``octavo.network.memory``): (full name, module, attribute).

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
    def form(self) -> Form | None:
        """The form of the module's kind: see ``octavo.network.kinds.Kind``."""
        return form_of(self.module)

    @property
    def groups(self) -> int:
        """Groups of a weight that is stored with its input channels first: a transposed
        convolution's groups, 1 for a transposed matrix; 0 for every other layer.
        """
        return _groups(self.module)

    @property
    def places(self) -> list[tuple[nn.Module, str]]:
        """Every (module, attribute) that has the parameter, each once."""
        first = (self.module, self.attribute)
        others = [(module, attribute) for _, module, attribute in self.tied]
        return list(dict.fromkeys([first, *others]))


@dataclass(frozen=True)
class Skipped:
    """A parameter that stays in float, and the reason."""

    name: str
    weights: int
    reason: str


def channels_first(weight: Tensor, groups: int) -> Tensor:
    """Return ``weight`` with its output channels first.

    Args:
        weight: (inputs, outputs / groups, ...) if there are groups, else (outputs, ...).
        groups: ``Layer.groups``; with 0, the result is ``weight`` itself.

    """
    if not groups:
        return weight
    inputs, outputs, *kernel = weight.shape  # outputs of one group
    grouped = weight.reshape(groups, inputs // groups, outputs, *kernel)
    return grouped.transpose(1, 2).reshape(-1, inputs // groups, *kernel)


def channels_back(weight: Tensor, groups: int) -> Tensor:
    """Undo :func:`channels_first`."""
    if not groups:
        return weight
    outputs, inputs, *kernel = weight.shape  # inputs of one group
    grouped = weight.reshape(groups, outputs // groups, inputs, *kernel)
    return grouped.transpose(1, 2).reshape(-1, outputs // groups, *kernel)


def find_layers(model: nn.Module) -> tuple[list[Layer], list[Skipped]]:
    """Find every tensor of ``model`` that can be quantized, in registration order, and every
    parameter that cannot, with the reason.

    A parameter that several modules share is one layer, named after the first of them in which it
    is a weight that octavo knows.
    """
    places_of: dict[Hashable, list[_Place]] = {}  # by the memory of the parameter
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its parameters are reported at the module that it belongs to
        for place in _places(prefix, module):
            places_of.setdefault(memory_of(place.parameter), []).append(place)
    overlaps = overlapping(places[0].parameter for places in places_of.values())
    layers = []
    skipped = []
    for position, places in enumerate(places_of.values()):
        known = [place for place in places if not place.reason]
        if known and position in overlaps:
            skipped.append(Skipped(known[0].full, _size(known[0].parameter), OVERLAP))
        elif known and not any(place.forbidden for place in places):
            layers.append(_layer(known[0], places))
        else:
            worst = max(places, key=lambda place: (place.forbidden, bool(place.reason)))
            skipped.append(Skipped(places[0].full, _size(worst.parameter), worst.reason))
    return layers, skipped


def free_layers(model: nn.Module, shall_be: str = "quantized") -> tuple[list[Layer], list[Skipped]]:
    """Return what :func:`find_layers` does, for a function that needs layers to change.

    Raises:
        PlanError: there is no layer, or one would be skipped only because it is masked, or because
            an ``Incremental`` or ``Surgery`` that is not finished has it.

    """
    layers, skipped = find_layers(model)
    for skip in skipped:
        if skip.reason in (MASKED, ATTACHED):
            raise PlanError(f"{skip.name}: {skip.reason}")
    if not layers:
        raise PlanError(
            f"{type(model).__name__}: expected a model with layers that can be {shall_be}, "
            "found none"
        )
    return layers, skipped


@dataclass(frozen=True)
class _Place:
    """A module that has a parameter.

    ``reason`` says why the parameter is no layer there; it is empty if it is one. ``forbidden``
    says that because of this place it must not be a layer anywhere.
    """

    full: str
    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    reason: str
    forbidden: bool


def _layer(first: _Place, places: Iterable[_Place]) -> Layer:
    others = [place for place in places if place is not first]
    tied = [(place.full, place.module, place.attribute) for place in others]
    return Layer(first.name, first.module, first.attribute, first.full, first.parameter, tied)


def _places(prefix: str, module: nn.Module) -> Iterator[_Place]:
    """Yield the parameters that belong to the module itself."""
    several = form_of(module) not in ONE_WEIGHT | {None}
    for attribute, parameter, obstacle in _own_parameters(module):
        full = f"{prefix}.{attribute}".lstrip(".")
        name = full if several or not prefix else prefix
        reason = obstacle or _why_float(module, attribute)
        yield _Place(full, name, module, attribute, parameter, reason, bool(obstacle))


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, str]]:
    """Yield (attribute, parameter, obstacle) of the module's parameters: see :func:`_obstacle`."""
    lists: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    for attribute, parametrizations in lists.items():
        obstacle = ATTACHED if is_attached(module, attribute) else PARAMETRIZED
        for parameter in parametrizations.parameters():
            yield attribute, parameter, obstacle
    for attribute, parameter in module._parameters.items():
        if parameter is not None:
            yield attribute, parameter, _obstacle(module, parameter)


def _obstacle(module: nn.Module, parameter: nn.Parameter) -> str:
    """Return the reason why a parameter cannot be quantized even if it is a weight; empty if there
    is none.
    """
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
    """Return the reason why a parameter is not a weight that is quantized; empty if it is one."""
    name = type(module).__name__
    kind = kind_of(module)
    if attribute.endswith("_orig") and attribute.removesuffix("_orig") + "_mask" in module._buffers:
        return MASKED
    if kind is not None and kind.is_weight(attribute):
        return ""
    if "bias" in attribute:
        return BIAS
    if "norm" in name.lower():
        return NORM
    if "quantizer" in name.lower():
        return SCALE
    return f"{name}.{attribute} is not a kind of weight that octavo knows"


def _size(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, nn.UninitializedParameter) else parameter.numel()


def _groups(module: Any) -> int:
    """Return the groups of a module's weight: see ``Layer.groups``."""
    kind = kind_of(module)
    if kind is None:
        return 0
    return int(module.groups) if kind.form == "transposed" else int(kind.inputs_first)


def find_inputs(model: nn.Module) -> tuple[dict[str, nn.Module], list[Skipped]]:
    """Find the modules whose inputs can be quantized, by name, and the other modules with weights,
    with the reason why theirs cannot.
    """
    modules: dict[str, nn.Module] = {}
    skipped: list[Skipped] = []
    attention = _attention_of_projection(model)
    for name, module in model.named_modules():
        if kind_of(module) is None:
            continue
        if reason := _why_no_input(module, attention):
            skipped.append(Skipped(name, sum(map(_size, module.parameters(recurse=False))), reason))
        else:
            modules[name] = module
    return modules, skipped


def _why_no_input(module: nn.Module, attention: dict[nn.Module, nn.Module]) -> str:
    """Return the reason why no hook can quantize a layer's inputs; empty if one can."""
    name = type(module).__name__
    form = form_of(module)
    if form == "embedding":
        return f"{name} is given indices"
    if form not in ONE_WEIGHT:
        return f"{name} multiplies what it computes inside, which no hook reaches"
    return "MultiheadAttention reads its weight without calling it" if module in attention else ""


def calling_modules(model: nn.Module, layers: Iterable[Layer]) -> dict[nn.Module, list[Layer]]:
    """Return the layers by the module whose calls show their inputs.

    A tied layer has several such modules: all that store the weight in the same layout.
    The weight of an attention's output projection has the attention itself, which reads the weight
    without calling the projection.
    """
    attention = _attention_of_projection(model)
    by_module: dict[nn.Module, list[Layer]] = {}
    for layer in layers:
        for module in dict.fromkeys(module for module, _ in layer.places):
            if kind_of(module) is None or _groups(module) == layer.groups:
                by_module.setdefault(attention.get(module, module), []).append(layer)
    return by_module


def _attention_of_projection(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return each attention of the model, by its output projection."""
    return {m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
