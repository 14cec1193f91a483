"""The space of a search: the layers, the actions that each may take, and what they cost.

A choice is a tuple with one index into each layer's actions, layers in forward order. Every budget
is linear in the factors of the chosen actions: each layer has a price for one unit of factor.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeAlias

import numpy as np

from octavo.errors import BudgetError, PlanError, nearest
from octavo.formats.width import FLOAT, Width, WidthLike, check_bits, read_width, write_width
from octavo.plan import Budget, Plan

__all__ = ["DOWN", "UP", "Action", "Choice", "Partial", "Space", "Step", "layer_widths"]

Choice: TypeAlias = tuple[int, ...]
Partial: TypeAlias = tuple[int | None, ...]  # None: that layer stays in full precision

DOWN = -1
UP = 1


@dataclass(frozen=True)
class Action:
    """An action gives one layer the width of its weights, and may give its inputs bits too.

    Attributes:
        width: the width of the layer's weights.
        input_bits: the bits of the layer's inputs, 2 to 8, or 32 where they stay in float; None in
            a search for the bits of weights alone, which does not count inputs.

    Raises:
        PlanError: bits of inputs that there are not.

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
    def size(self) -> tuple[int, bool, int]:
        """The key by which actions are sorted: factor, then the codebook, then bits of weights."""
        return self.factor, self.width.codebook != "power_of_two", self.width.bits

    def __str__(self) -> str:
        inputs = "" if self.input_bits is None else f"x{self.input_bits}"
        return f"{self.width}{inputs}"

    def written(self) -> int | str:
        """Return what stands for the action in JSON: ``3``, ``"apot6"`` or ``"3x8"``."""
        return write_width(self.width) if self.input_bits is None else str(self)


class Step(NamedTuple):
    """A change of one layer to a neighbouring action, and what it adds to the price."""

    action: int
    price: float


@dataclass(frozen=True)
class Space:
    """The layers in forward order, and the actions that each may take.

    Attributes:
        names: names of the layers.
        actions: the actions of each layer by rising factor; a single one where it is pinned.
        weights: number of weights of each layer.
        macs: multiply-accumulates of each layer for one input.
        budget: what a choice may cost; None allows every choice.
        traits: other numbers that tell the layers apart, (layers, any).
        prices: price of one unit of factor in each layer, (layers,).
        limit: the most that the sum of prices times factors may be.
        steps: for each layer, by action and direction, the steps to neighbouring actions.

    Raises:
        BudgetError: no choice is within the budget; the message has the feasible range.

    """

    names: tuple[str, ...]
    actions: tuple[tuple[Action, ...], ...]
    weights: tuple[int, ...]
    macs: tuple[int, ...]
    budget: Budget | None = None
    traits: tuple[tuple[float, ...], ...] = ()
    prices: np.ndarray = field(init=False, compare=False)
    limit: float = field(init=False)
    steps: tuple[dict[tuple[int, int], tuple[Step, ...]], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        prices, limit = _prices_and_limit(self.budget, self.weights, self.macs)
        steps = tuple(map(_steps, self.actions, prices.tolist()))
        object.__setattr__(self, "prices", prices)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "steps", steps)
        if not self.fits(self.cheapest):
            raise BudgetError(self._feasible())

    @property
    def cheapest(self) -> Choice:
        """The choice of each layer's first action, which costs least."""
        return (0,) * len(self.names)

    @property
    def dearest(self) -> Choice:
        """The choice of each layer's last action, which costs most."""
        return tuple(len(actions) - 1 for actions in self.actions)

    def chosen(self, choice: Choice) -> tuple[Action, ...]:
        """Return the action of each layer."""
        return tuple(actions[index] for actions, index in zip(self.actions, choice, strict=True))

    def plan(self, choice: Choice) -> Plan:
        """Return the choice as a plan, which knows its cost."""
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

    def price(self, choice: Choice) -> float:
        """Return what the choice costs, in the budget's terms."""
        factors = [action.factor for action in self.chosen(choice)]
        return float(self.prices @ np.array(factors, float))

    def room(self, choice: Choice) -> float:
        """Return what the budget leaves beyond the choice's price; negative if it is too dear."""
        return self.limit * (1 + 1e-12) - self.price(choice)

    def fits(self, choice: Choice) -> bool:
        """Return whether the choice is within the budget."""
        return self.room(choice) >= 0

    def _feasible(self) -> str:
        low = self.plan(self.cheapest).cost()
        high = self.plan(self.dearest).cost()
        return (
            f"{self.budget}: no plan within the options costs so little; feasible: "
            f"{low.average_bits:.3g} to {high.average_bits:.3g} average bits, "
            f"{low.bytes:,} to {high.bytes:,} bytes, "
            f"a ratio of {high.ratio:.2f} to {low.ratio:.2f}, "
            f"{low.bit_ops:,} to {high.bit_ops:,} bit operations"
        )


def layer_widths(
    names: Sequence[str], options: Sequence[WidthLike], pins: Mapping[str, WidthLike]
) -> tuple[tuple[Width, ...], ...]:
    """Return the widths that each layer may get, ascending; a pinned layer has a single one.

    Raises:
        PlanError: no options, bits out of range, or a pin for a layer that is not there.

    """
    if not options:
        raise PlanError("options: expected at least one number of bits, got none")
    ascending = tuple(sorted({read_width(option, "options") for option in options}))
    for name in pins:
        if name not in names:
            raise PlanError(f"pin {name}: no layer that is searched{nearest(name, names)}")
    pinned = {name: read_width(width, f"pin {name}") for name, width in pins.items()}
    return tuple((pinned[name],) if name in pinned else ascending for name in names)


def _prices_and_limit(
    budget: Budget | None, weights: Sequence[int], macs: Sequence[int]
) -> tuple[np.ndarray, float]:
    """Return the budget as prices of one unit of factor in each layer, and their limit."""
    by_weights = np.array(weights, float)
    if budget is None:
        return by_weights, math.inf
    if budget.bit_ops is not None:
        return np.array(macs, float), float(budget.bit_ops)
    if budget.bytes is not None:
        return by_weights, 8.0 * budget.bytes
    average = budget.average_bits if budget.average_bits is not None else 32 / (budget.ratio or 1)
    return by_weights, average * float(by_weights.sum())


def _steps(actions: Sequence[Action], price: float) -> dict[tuple[int, int], tuple[Step, ...]]:
    """Return the steps of a layer by action and direction: none at the end, several where
    neighbours cost the same.

    An action with bits of inputs has, besides the nearest of all, the nearest in each of its two
    parts while the other part stays.
    """
    steps = {}
    for now, direction in itertools.product(range(len(actions)), (DOWN, UP)):
        here = actions[now]
        further = [
            index
            for index, action in enumerate(actions)
            if (action.factor - here.factor) * direction > 0
        ]
        to = _nearest(actions, now, further)
        if here.input_bits is not None:
            same_width = [i for i in further if actions[i].width == here.width]
            same_inputs = [i for i in further if actions[i].input_bits == here.input_bits]
            to = _nearest(actions, now, same_width) + _nearest(actions, now, same_inputs)
        steps[now, direction] = tuple(
            Step(index, price * (actions[index].factor - here.factor)) for index in to
        )
    return steps


def _nearest(actions: Sequence[Action], now: int, others: Sequence[int]) -> list[int]:
    """Return those of the other actions whose factor is nearest to that of ``now``."""
    distance = {index: abs(actions[index].factor - actions[now].factor) for index in others}
    least = min(distance.values(), default=0)
    return [index for index in others if distance[index] == least]
