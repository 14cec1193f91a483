"""The plan, which says how many bits each layer gets; its cost; and the budget for the cost."""

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from torch import nn

from octavo._io import check_output, write_atomically
from octavo._yaml import read_yaml_file
from octavo.errors import BudgetError, PlanError, nearest, printable
from octavo.formats.width import FLOAT, Width, WidthLike, check_bits, read_width, write_widths
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.layers import Layer, Skipped, find_layers, free_layers

__all__ = [
    "Budget",
    "Cost",
    "Plan",
    "check_is_budget",
    "matching",
    "matching_plan",
    "planned_layers",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """The nominal cost of a plan: each planned weight counts its layer's bits.

    Stored files are smaller: see ``Packed``.

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


class Plan(MutableMapping[str, Width]):  # noqa: PLW1641 - it can change, so it has no hash
    """The widths of all layers, by layer name; a layer that is missing stays in float.

    A value may be given as plain bits, 2 to 8, as a ``Width``, or as a text: ``Apot(6)`` or
    ``"apot6"`` gives a layer sums of two powers of two at 6 bits, ``"fp4"``, ``"fp6"`` or ``"fp8"``
    floating-point numbers, and ``"int8"`` integers. Functions that take a plan take a
    plain dict too. In both, a shell pattern such as ``"layer1.*"`` stands for every layer that it
    matches. A layer's own name counts before patterns; of several patterns that match it, the last
    counts.

    Args:
        bits: layer name to width.
        weights: layer name to number of weights; ``cost`` needs it. ``Plan.uniform`` fills it in.
        macs: layer name to multiply-accumulates, for bit operations.
        activations: layer name to bits of its inputs, 2 to 8, for ``quantize_activations``; a
            search may choose them.

    Raises:
        PlanError: a value that is no width, or a count that is no integer of at least 0.

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
        """Give the same width to every layer whose name matches ``include`` and none of ``exclude``
        (layer names or shell patterns, or a single one).

        Raises:
            PlanError: no layer of the model can be quantized, ``torch.nn.utils.prune`` masks one,
                an ``Incremental`` or ``Surgery`` that is not finished has one, or a pattern matches
                none.

        """
        weights = {layer.name: layer.weight.numel() for layer in free_layers(model)[0]}
        warn_if_mostly_float(model)
        title = _title(model)
        included = _matched(include, weights, title)
        patterns = [exclude] if isinstance(exclude, str) else exclude
        excluded = {name for pattern in patterns for name in _matched(pattern, weights, title)}
        chosen = [name for name in included if name not in excluded]
        return cls(dict.fromkeys(chosen, bits), weights=weights)

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

    def __eq__(self, other: object) -> bool:
        """Compare the widths and, with another plan, the bits of inputs too."""
        if isinstance(other, Plan) and other.activations != self.activations:
            return False
        return super().__eq__(other)

    def __repr__(self) -> str:
        activations = f", activations={self.activations!r}" if self.activations else ""
        return f"Plan({write_widths(self._bits)!r}{activations})"

    def __str__(self) -> str:
        """Return the plan as a table, and its nominal cost where the plan knows the weights."""
        return _table(self)

    def cost(self) -> Cost:
        """Return the nominal cost of the plan.

        Raises:
            PlanError: an empty plan, or a layer whose number of weights the plan does not know.

        """
        if not self:
            raise PlanError("the plan is empty")
        for name in self:
            if not self.weights.get(name):
                raise PlanError(f"{name}: the plan does not know its number of weights")
        total = sum(self.weights[name] for name in self)
        bits = sum(self.weights[name] * self[name].bits for name in self)
        return Cost(bits / total, FLOAT * total / bits, math.ceil(bits / 8), self._bit_ops())

    def _bit_ops(self) -> int | None:
        """Sum up the bit operations, or return None where multiply-accumulates are not known."""
        if set(self) - set(self.macs):
            return None
        if not self.activations:
            return sum(self[name].bits * self.macs[name] for name in self)
        return sum(
            self[name].bits * self.activations.get(name, FLOAT) * self.macs[name] for name in self
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML that a person can edit.

        Raises:
            FileNotFoundError: the folder of ``path`` does not exist.

        """
        check_output(path)
        content: dict[str, Any] = {
            "bits": write_widths(self._bits),
            "weights": {n: self.weights[n] for n in self if n in self.weights},
        }
        if self.macs:
            content["macs"] = {name: self.macs[name] for name in self if name in self.macs}
        if self.activations:
            content["activations"] = dict(self.activations)
        head = (
            "# octavo plan: bits per layer, 2 to 8 (powers of two), apot5 to apot8, fp4, fp6, fp8"
            " or int8; a layer without a line stays in float. The counts serve cost().\n"
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
            content = read_yaml_file(path)
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
    """A limit on the cost of a plan; exactly one of the four is given.

    Args:
        ratio: the least ratio of the network's bytes in float to the bytes of its packed file, as
            ``Packed.ratio`` has it.
        average_bits: the most nominal bits per planned weight, on average. The file is smaller: it
            stores codes near their entropy.
        bytes: the most bytes of the packed file, everything in it included.
        bit_ops: the most bit operations of one input: bits times multiply-accumulates.

    Raises:
        BudgetError: none or several are given, or one is not a positive number.

    """

    ratio: float | None = None
    average_bits: float | None = None
    bytes: int | None = None
    bit_ops: int | None = None

    def __post_init__(self) -> None:
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if len(limits) != 1:
            raise BudgetError(
                "expected exactly one of ratio, average_bits, bytes and bit_ops, "
                f"got {limits or 'none'}"
            )
        ((name, value),) = limits.items()
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise BudgetError(f"{name}: expected a positive number, got {value!r}")

    def __str__(self) -> str:
        """Return the limit as text, in full: ``average_bits=3``."""
        name, value = next(pair for pair in vars(self).items() if pair[1] is not None)
        return f"{name}={value if isinstance(value, int) else format(value, '.15g')}"

    @property
    def of_file(self) -> bool:
        """True for a limit on the packed file: ``bytes`` or ``ratio``."""
        return self.bytes is not None or self.ratio is not None


def check_is_budget(budget: object) -> None:
    """Raise BudgetError unless a user's budget is a ``Budget`` or None."""
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f"budget: expected one such as Budget(bytes=100_000), got {budget!r}")


def matching_plan(model: nn.Module, bits: WidthLike | Mapping[str, WidthLike]) -> Plan:
    """Make a plan from one width for every layer, or from widths by layer name or shell pattern."""
    planned = planned_layers(model, bits if isinstance(bits, Mapping) else {"*": bits})
    weights = {layer.name: layer.weight.numel() for layer in find_layers(model)[0]}
    return Plan({layer.name: width for layer, width in planned}, weights=weights)


def matching(names: Iterable[str], values: T | Mapping[str, T], title: str) -> dict[str, T]:
    """Return values by layer name, in the order of the names; a layer without a match is left out.

    Args:
        names: the names of the layers.
        values: one value for all layers, or values by layer name or shell pattern. A layer's own
            name counts before patterns; of several patterns that match it, the last counts.
        title: one of the names in words, for errors: ``"layer of Net"``.

    Raises:
        PlanError: a name or pattern matches no layer.

    """
    known = dict.fromkeys(names)
    patterns = values if isinstance(values, Mapping) else {"*": values}
    chosen: dict[str, T] = {}
    for pattern in sorted(patterns, key=known.__contains__):  # names after patterns
        chosen |= dict.fromkeys(_matched(pattern, known, title), patterns[pattern])
    return {name: chosen[name] for name in known if name in chosen}


def _matched(pattern: str, names: Mapping[str, object], title: str) -> list[str]:
    """Return the names that a shell pattern matches. If it is one of the names itself, it stands
    for this one only: ``a[1]`` may be the name of a layer. A plan has one such key for each layer,
    so these are looked up.

    Raises:
        PlanError: it matches none.

    """
    if pattern in names:
        return [pattern]
    if not isinstance(pattern, str):
        raise PlanError(f"expected the name of a {title} or a shell pattern, got {pattern!r}")
    matches = re.compile(fnmatch.translate(pattern)).match
    matched = [name for name in names if matches(name)]
    if not matched:
        raise PlanError(f"{pattern!r} matches no {title}{nearest(pattern, names)}")
    return matched


def planned_layers(model: nn.Module, plan: Mapping[str, WidthLike]) -> list[tuple[Layer, Width]]:
    """Return the layers of the model that ``plan`` has, with their widths, in registration order.
    The plan names them, or has shell patterns: see :func:`matching`.

    Raises:
        PlanError: no mapping, a name or pattern that matches no layer (with the nearest known), or
            a name that is skipped (with the reason).

    """
    if not isinstance(plan, Mapping):
        raise PlanError(
            "plan: expected a Plan or a dict from layer name to bits, "
            f"got {plan!r}; write Plan.uniform(model, 4) for 4 bits in every layer"
        )
    layers, skipped = free_layers(model)
    if not plan:
        raise PlanError("the plan is empty: it names no layer to quantize")
    known = {layer.name: layer for layer in layers}
    widths = {name: read_width(bits, name) for name, bits in plan.items()}
    for name in widths:
        if name not in known:
            _check_no_other(name, model, layers, skipped)
    chosen: dict[str, Width] = matching(known, widths, _title(model))
    return [(known[name], width) for name, width in chosen.items()]


def _table(plan: Plan) -> str:
    """Lay out a plan: a line for each layer, and its cost below where that is known."""
    rows = [["layer", "bits", "weights", "bits of inputs"]]
    for name, width in plan.items():
        count = f"{plan.weights[name]:,}" if name in plan.weights else ""
        rows.append([printable(name), str(width), count, str(plan.activations.get(name, ""))])
    used = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in used]
    lines = []
    for first, *others in zip(*used, strict=True):
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    if plan and all(plan.weights.get(name) for name in plan):
        cost = plan.cost()
        lines.append(f"{cost.average_bits:.3g} bits on average, {cost.bytes:,} nominal bytes")
    return "\n".join(lines)


def _checked_counts(counts: Mapping[str, int] | None) -> dict[str, int]:
    for name, count in (counts or {}).items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise PlanError(f"{name}: expected a count, got {count!r}")
    return {str(name): count for name, count in (counts or {}).items()}


def _check_no_other(
    name: str, model: nn.Module, layers: Sequence[Layer], skipped: Sequence[Skipped]
) -> None:
    """Raise PlanError if a key of a plan is the name of something that is no layer by itself."""
    names = (name, f"{name}.weight")
    for skip in skipped:
        if skip.name in names:
            raise PlanError(f"{name} is skipped ({skip.reason}): it is no {_title(model)}")
    for layer in layers:
        if any(full in names for full, *_ in layer.tied):
            raise PlanError(
                f"{name} is tied to {layer.name}, plan that one: "
                f"it is no layer by itself of {type(model).__name__}"
            )


def _title(model: nn.Module) -> str:
    return f"layer of {type(model).__name__}"
