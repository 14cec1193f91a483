"""Plan: how many bits each layer gets, as plain data; Budget: what it may cost."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from torch import nn

from octavo._io import read_yaml, write_atomically
from octavo.errors import BudgetError, PlanError, nearest
from octavo.formats.width import FLOAT, Width, WidthLike, check_bits, read_width, write_widths
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.layers import MASKED, Layer, Skipped, find_layers

__all__ = ["Budget", "Cost", "Plan", "matching", "matching_plan", "planned_layers"]

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a plan costs, nominally: each planned weight counts its layer's bits. Stored files are
    smaller: see ``Packed``.

    Attributes:
        average_bits: nominal bits per planned weight.
        ratio: 32 / average_bits.
        bytes: nominal bytes of all planned weights.
        bit_ops: sum over the layers of bits times multiply-accumulates; in a plan with activations,
            times the bits of the layer's inputs as well, 32 where they are in float. None where
            multiply-accumulates are not known.

    """

    average_bits: float
    ratio: float
    bytes: int
    bit_ops: int | None


class Plan(MutableMapping[str, Width]):
    """Bits by layer name, 2 to 8; a layer that is missing stays in float. A plain dict is a plan
    too where one is asked for.

    ``Apot(6)``, or the text ``apot6``, in place of bits gives a layer sums of two powers of two at
    so many bits, 5 to 8.

    Args:
        bits: layer name to bits.
        weights: layer name to number of weights; ``cost`` needs it. ``Plan.uniform`` fills it in.
        macs: layer name to multiply-accumulates, for bit operations.
        activations: layer name to bits of its inputs, 2 to 8, for ``quantize_activations``; a
            search may find them.

    Raises:
        PlanError: bits that are not an integer from 2 to 8, or a count that is none.

    """

    def __init__(
        self,
        bits: Mapping[str, WidthLike],
        *,
        weights: Mapping[str, int] | None = None,
        macs: Mapping[str, int] | None = None,
        activations: Mapping[str, int] | None = None,
    ) -> None:
        self._bits: dict[str, Width] = {}
        self.weights = _checked_counts(weights)
        self.macs = _checked_counts(macs)
        self.activations = {
            str(name): check_bits(value, f"activations, {name}")
            for name, value in (activations or {}).items()
        }
        for name, width in bits.items():
            self[name] = width

    @classmethod
    def uniform(
        cls, model: nn.Module, bits: WidthLike, *, include: str = "*", exclude: Sequence[str] = ()
    ) -> Self:
        """The same bits for every layer whose name matches ``include`` and none of ``exclude``
        (shell patterns).

        Raises:
            PlanError: no layer of the model can be quantized, ``torch.nn.utils.prune`` masks one,
                or a pattern matches none.

        """
        found, skipped = find_layers(model)
        _check_plain(skipped)
        layers = {layer.name: layer.weight.numel() for layer in found}
        if not layers:
            raise PlanError(
                f"{type(model).__name__}: expected a model with layers that can be quantized, found none"
            )
        warn_if_mostly_float(model)
        _check_patterns([include, *exclude], layers, type(model).__name__)
        chosen = [
            n
            for n in layers
            if fnmatchcase(n, include) and not any(fnmatchcase(n, out) for out in exclude)
        ]
        return cls(dict.fromkeys(chosen, bits), weights=layers)

    def __getitem__(self, name: str) -> Width:
        return self._bits[name]

    def __setitem__(self, name: str, bits: WidthLike) -> None:
        self._bits[name] = read_width(bits, name)

    def __delitem__(self, name: str) -> None:
        del self._bits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __repr__(self) -> str:
        return f"Plan({write_widths(self._bits)!r}{f', activations={self.activations!r}' if self.activations else ''})"

    def cost(self) -> Cost:
        """What the plan costs.

        Raises:
            PlanError: an empty plan, or a layer whose number of weights the plan does not know.

        """
        unknown = [name for name in self if not self.weights.get(name)]
        if unknown or not self:
            raise PlanError(
                f"{unknown[0]}: the plan does not know its number of weights"
                if unknown
                else "the plan is empty"
            )
        total = sum(self.weights[name] for name in self)
        bits = sum(self.weights[name] * self[name].bits for name in self)
        inputs = {
            name: self.activations.get(name, FLOAT) if self.activations else 1 for name in self
        }
        ops = (
            None
            if set(self) - set(self.macs)
            else sum(self[name].bits * inputs[name] * self.macs[name] for name in self)
        )
        return Cost(bits / total, 32 * total / bits, math.ceil(bits / 8), ops)

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML that a person can edit."""
        content: dict[str, Any] = {
            "bits": write_widths(self._bits),
            "weights": {n: self.weights[n] for n in self if n in self.weights},
        }
        if self.macs:
            content["macs"] = {name: self.macs[name] for name in self if name in self.macs}
        if self.activations:
            content["activations"] = dict(self.activations)
        head = (
            "# octavo plan: bits per layer, 2 to 8, or apot5 to apot8 (sums of two powers of two); a layer without a line "
            "stays in float. The counts serve cost().\n"
        )
        text = head + yaml.safe_dump(content, sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan that ``save`` wrote, edited or not.

        Raises:
            PlanError: not a plan; the message names the file and the key.

        """
        try:
            content = read_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"{path}: not a readable plan: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("bits"), dict):
            raise PlanError(
                f"{path}: expected a mapping with the key 'bits', from layer names to bits"
            )
        others = {key: content.get(key) or {} for key in ("weights", "macs", "activations")}
        if set(content) - {"bits", *others} or not all(
            isinstance(other, dict) for other in others.values()
        ):
            keys = ", ".join(map(str, content))
            raise PlanError(
                f"{path}: expected mappings named bits, weights, macs and activations, got {keys}"
            )
        try:
            return cls(content["bits"], **others)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan may cost: exactly one of a least ``ratio``, or the most ``average_bits``,
    ``bytes`` or ``bit_ops``.

    Raises:
        BudgetError: none or several are given, or one is not a positive number.

    """

    ratio: float | None = None
    average_bits: float | None = None
    bytes: int | None = None
    bit_ops: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise BudgetError(
                f"expected exactly one of ratio, average_bits, bytes and bit_ops, got {given or 'none'}"
            )
        ((name, value),) = given.items()
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise BudgetError(f"{name}: expected a positive number, got {value!r}")

    def __str__(self) -> str:
        """The one that is given: ``average_bits=3``."""
        return next(f"{name}={value:g}" for name, value in vars(self).items() if value is not None)

    def allows(self, cost: Cost) -> bool:
        """Whether ``cost`` is within the budget."""
        if self.ratio is not None:
            return cost.ratio >= self.ratio
        if self.bit_ops is not None:
            if cost.bit_ops is None:
                raise BudgetError(
                    "bit_ops: the plan knows no multiply-accumulates; make it by inspect(model, example)"
                )
            return cost.bit_ops <= self.bit_ops
        return all(
            most is None or getattr(cost, name) <= most
            for name, most in vars(self).items()
            if name in vars(cost)
        )


def matching_plan(model: nn.Module, bits: WidthLike | Mapping[str, WidthLike]) -> Plan:
    """A plan from bits for every layer, or from shell patterns to bits: see :func:`matching`."""
    known = Plan.uniform(model, 8)
    return Plan(matching(known, bits, type(model).__name__), weights=known.weights)


def matching(names: Iterable[str], bits: T | Mapping[str, T], model: str) -> dict[str, T]:
    """Bits by the names of layers, in their order, from bits for all, or from shell patterns: the
    last that matches counts.

    Raises:
        PlanError: a pattern matches no layer of the model.

    """
    names = list(names)
    patterns = bits if isinstance(bits, Mapping) else {"*": bits}
    _check_patterns(patterns, names, model)
    found = {
        name: [value for pattern, value in patterns.items() if fnmatchcase(name, pattern)]
        for name in names
    }
    return {name: values[-1] for name, values in found.items() if values}


def _check_patterns(patterns: Iterable[str], names: Collection[str], model: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise PlanError(f"{pattern!r} matches no layer of {model}{nearest(pattern, names)}")


def planned_layers(model: nn.Module, plan: Mapping[str, WidthLike]) -> list[tuple[Layer, Width]]:
    """The model's layers that ``plan`` names, with their bits, in registration order.

    Raises:
        PlanError: a name that the model does not have (with the nearest known), or that is skipped
            (with the reason).

    """
    layers, skipped = find_layers(model)
    _check_plain(skipped)
    if not layers:
        raise PlanError(
            f"{type(model).__name__}: expected a model with layers that can be quantized, found none"
        )
    known = {layer.name: layer for layer in layers}
    widths = {name: read_width(bits, name) for name, bits in plan.items()}
    for name in plan:
        if name not in known:
            raise PlanError(
                f"{name} {_why_unknown(name, layers, skipped)} of {type(model).__name__}"
            )
    if not plan:
        raise PlanError("the plan is empty: it names no layer to quantize")
    return [(layer, widths[layer.name]) for layer in layers if layer.name in widths]


def _check_plain(skipped: Sequence[Skipped]) -> None:
    """Raise PlanError where a weight would be skipped that is one, only masked."""
    for skip in skipped:
        if skip.reason == MASKED:
            raise PlanError(f"{skip.name}: {skip.reason}")


def _checked_counts(counts: Mapping[str, int] | None) -> dict[str, int]:
    for name, count in (counts or {}).items():
        if not isinstance(count, int) or count < 0:
            raise PlanError(f"{name}: expected a count, got {count!r}")
    return {str(name): count for name, count in (counts or {}).items()}


def _why_unknown(name: str, layers: Sequence[Layer], skipped: Sequence[Skipped]) -> str:
    """What is wrong with a plan's key that no layer has."""
    names = (name, f"{name}.weight")
    for skip in skipped:
        if skip.name in names:
            return f"is skipped ({skip.reason}): it is no layer"
    for layer in layers:
        if any(full in names for full, *_ in layer.tied):
            return f"is tied to {layer.name}, plan that one: it is no layer by itself"
    return f"is no layer{nearest(name, (layer.name for layer in layers))}, and no tensor that can be quantized"
