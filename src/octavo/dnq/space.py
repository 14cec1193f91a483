"""The space of a search: the layers, the actions that each may take, and what they cost.

A choice is a tuple with one index into each layer's actions, layers in forward order. The cost of a
choice is the sum of what its actions cost; a budget is a limit for that sum.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self, TypeAlias

import numpy as np

from octavo.errors import PlanError
from octavo.formats.width import BITS, FLOAT, Width, WidthLike, check_bits, read_width, write_width
from octavo.plan import Budget, Plan, matching

__all__ = [
    "DOWN",
    "UP",
    "Action",
    "Choice",
    "Partial",
    "Space",
    "Step",
    "factor_costs",
    "layer_widths",
]

Choice: TypeAlias = tuple[int, ...]
Partial: TypeAlias = tuple[int | None, ...]  # None: that layer stays in full precision

DOWN = -1
UP = 1
TOLERANCE = 1e-12  # share of the limit by which rounding may exceed it


@dataclass(frozen=True)
class Action:
    """An action gives one layer the width of its weights, and may give its inputs bits too.

    Attributes:
        width: the width of the layer's weights.
        input_bits: the bits of the layer's inputs, 2 to 8, or 32 where they stay in float; None in
            a search for the bits of weights alone, which does not count inputs.

    Raises:
        PlanError: ``input_bits`` is none of these.

    """

    width: Width
    input_bits: int | None = None

    def __post_init__(self) -> None:
        if self.input_bits not in (None, FLOAT):
            check_bits(self.input_bits, "bits of inputs")

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read an action from its text, such as ``3``, ``apot6`` or ``3x8``, or from a plain int.

        Raises:
            PlanError: the value is no such text.

        """
        if not isinstance(value, str):
            return cls(read_width(value))
        width, times, inputs = value.partition("x")
        if times and not inputs.isdecimal():
            raise PlanError(f"bits: expected bits of weights and inputs as in 3x8, got {value!r}")
        read = read_width(int(width) if width.isdecimal() else width)
        return cls(read, int(inputs) if times else None)

    @property
    def factor(self) -> int:
        """The nominal bits of one weight or, where inputs count, of one multiply-accumulate."""
        return self.width.bits * (self.input_bits or 1)

    @property
    def size(self) -> tuple[int, int, int]:
        """The key by which actions are sorted: factor, then the codebook, then bits of weights."""
        return self.factor, list(BITS).index(self.width.codebook), self.width.bits

    def __str__(self) -> str:
        inputs = "" if self.input_bits is None else f"x{self.input_bits}"
        return f"{self.width}{inputs}"

    def written(self) -> int | str:
        """Return what stands for the action in JSON: ``3``, ``"apot6"`` or ``"3x8"``."""
        return write_width(self.width) if self.input_bits is None else str(self)


def _no_costs() -> np.ndarray:
    return np.empty((0, 0))


class Step(NamedTuple):
    """A change of one layer to a neighbouring action, and what it adds to the cost."""

    action: int
    cost: float


@dataclass(frozen=True)
class Space:
    """The layers in forward order, the actions that each may take, and what these may cost.

    A survey makes a space without a budget; ``octavo.dnq.prices.within`` gives it one.

    Attributes:
        names: names of the layers.
        actions: the actions of each layer by rising factor; a single one where it is pinned.
        weights: number of weights of each layer.
        macs: multiply-accumulates of each layer for one input.
        budget: the budget that ``costs`` and ``limit`` express; None allows every choice.
        costs: cost of each action in the budget's unit, (layers, actions), NaN where a layer has
            fewer actions; by default the nominal bits of its weights (times those of its inputs,
            where they count).
        limit: the most that the costs of a choice may add up to.

    """

    names: tuple[str, ...]
    actions: tuple[tuple[Action, ...], ...]
    weights: tuple[int, ...]
    macs: tuple[int, ...]
    budget: Budget | None = None
    costs: np.ndarray = field(default_factory=_no_costs, compare=False, repr=False)
    limit: float = math.inf

    def __post_init__(self) -> None:
        if not self.costs.size:
            object.__setattr__(self, "costs", factor_costs(self.actions, self.weights))

    @cached_property
    def steps(self) -> tuple[dict[tuple[int, int], tuple[Step, ...]], ...]:
        """For each layer, by action and direction, the steps to neighbouring actions."""
        return tuple(map(_steps, self.actions, self.costs.tolist()))

    @cached_property
    def cheapest(self) -> Choice:
        """The choice of each layer's action of least cost; of equals, the first."""
        return tuple(np.nanargmin(self.costs, 1).tolist())

    @cached_property
    def dearest(self) -> Choice:
        """The choice of each layer's action of highest cost; of equals, the last."""
        last = self.costs.shape[1] - 1
        return tuple((last - np.nanargmax(self.costs[:, ::-1], 1)).tolist())

    def chosen(self, choice: Choice) -> tuple[Action, ...]:
        """Return the action of each layer."""
        return tuple(actions[index] for actions, index in zip(self.actions, choice, strict=True))

    def plan(self, choice: Choice) -> Plan:
        """Return the choice as a plan, which knows its nominal cost."""
        actions = dict(zip(self.names, self.chosen(choice), strict=True))
        return Plan(
            {name: action.width for name, action in actions.items()},
            weights=dict(zip(self.names, self.weights, strict=True)),
            macs=dict(zip(self.names, self.macs, strict=True)),
            activations={
                name: action.input_bits
                for name, action in actions.items()
                if action.input_bits not in (None, FLOAT)
            },
        )

    def cost(self, choice: Choice) -> float:
        """Return what the choice costs, in the budget's unit."""
        return float(self.costs[range(len(choice)), choice].sum())

    def room(self, choice: Choice) -> float:
        """Return what the limit leaves beyond the choice's cost; negative if it is too dear."""
        return self.limit * (1 + TOLERANCE) - self.cost(choice)

    def fits(self, choice: Choice) -> bool:
        """Return whether the choice is within the limit."""
        return self.room(choice) >= 0


def layer_widths(
    names: Sequence[str], options: Sequence[WidthLike], pins: Mapping[str, WidthLike]
) -> tuple[tuple[Width, ...], ...]:
    """Return the widths that each layer may get, ascending; a pinned layer has a single one.

    Raises:
        PlanError: no options, bits out of range, or a pin that matches no layer.

    """
    if isinstance(options, str) or not isinstance(options, Sequence | Set):
        raise PlanError(f"options: expected several widths such as (2, 3, 4), got {options!r}")
    if not options:
        raise PlanError("options: expected at least one number of bits, got none")
    ascending = tuple(sorted({read_width(option, "options") for option in options}))
    widths = {name: read_width(width, f"pin {name}") for name, width in pins.items()}
    pinned: dict[str, Width] = matching(names, widths, "layer that is searched")
    return tuple((pinned[name],) if name in pinned else ascending for name in names)


def factor_costs(actions: Sequence[Sequence[Action]], counts: Sequence[int]) -> np.ndarray:
    """Return the factor of each action times its layer's count, (layers, actions), NaN where a
    layer has fewer actions.
    """
    costs = np.full((len(actions), max(map(len, actions))), np.nan)
    for layer, count in enumerate(counts):
        factors = [action.factor for action in actions[layer]]
        costs[layer, : len(factors)] = np.array(factors, float) * count
    return costs


def _steps(
    actions: Sequence[Action], costs: Sequence[float]
) -> dict[tuple[int, int], tuple[Step, ...]]:
    """Return the steps of a layer by action and direction: none at the end, several where
    neighbours cost the same.

    A step goes to the next action by rising or falling cost. If that has another codebook, there is
    a step to the next of the same codebook too, so that an action which costs more and is worse
    does not end a walk. An action with bits of inputs has the nearest in each of its two parts,
    while the other part stays.
    """
    # Actions of a layer without multiply-accumulates cost the same: then the factor decides.
    heights = [(costs[index], action.factor) for index, action in enumerate(actions)]
    steps = {}
    for now, here in enumerate(actions):
        above = [index for index, height in enumerate(heights) if height > heights[now]]
        below = [index for index, height in enumerate(heights) if height < heights[now]]
        for direction, further, nearest_of in ((DOWN, below, max), (UP, above, min)):
            to: list[int] = []
            for group in _groups(actions, here, further):
                nearest_height = nearest_of((heights[index] for index in group), default=None)
                to += [index for index in group if heights[index] == nearest_height]
            steps[now, direction] = tuple(
                Step(index, costs[index] - costs[now]) for index in dict.fromkeys(to)
            )
    return steps


def _groups(actions: Sequence[Action], here: Action, further: Sequence[int]) -> list[list[int]]:
    """Return the groups of the ``further`` actions such that a step goes to the nearest of each."""
    if here.input_bits is None:
        same_book = [i for i in further if actions[i].width.codebook == here.width.codebook]
        return [list(further), same_book]
    same_width = [i for i in further if actions[i].width == here.width]
    same_inputs = [i for i in further if actions[i].input_bits == here.input_bits]
    return [same_width, same_inputs]
