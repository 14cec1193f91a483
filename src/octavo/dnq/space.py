"""What the search chooses among: bits for each layer, what they cost, and how a choice is brought
within a budget.

A choice is a tuple of bits, one for each layer in forward order. Every budget is linear in them:
each layer has a price a bit. Where inputs are quantized too an option is a ``Both``, which counts
as the product of its bits.
"""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from octavo.dnq.widths import Both, by_size, input_bits, weight_bits, width_index
from octavo.errors import BudgetError, PlanError, nearest
from octavo.formats.width import FLOAT, Width, WidthLike, read_width
from octavo.plan import Budget, Plan

__all__ = ["Choice", "Space", "layer_options", "single_layers"]

Choice: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """The layers in forward order and what each may get.

    Attributes:
        names: of the layers.
        options: for each, its possible bits, ascending; a single one where it is pinned.
        weights: number of weights of each.
        macs: multiply-accumulates of each in one forward pass of the calibration inputs' first
            batch.
        budget: what a choice may cost; None: anything goes.
        traits: other numbers that tell the layers apart, (layers, any).

    """

    names: tuple[str, ...]
    options: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...]
    macs: tuple[int, ...]
    budget: Budget | None = None
    traits: tuple[tuple[float, ...], ...] = ()
    prices: np.ndarray = field(init=False)  # of one bit in each layer
    limit: float = field(init=False)  # of the sum of prices times bits
    near: tuple[dict[tuple[int, int], tuple[int, ...]], ...] = field(
        init=False
    )  # by layer: a step from bits, down or up

    def __post_init__(self) -> None:
        prices, limit = _linear(
            self.budget, np.array(self.weights, float), np.array(self.macs, float)
        )
        object.__setattr__(self, "prices", prices)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "near", tuple(map(_near, self.options)))
        cheapest = tuple(bits[0] for bits in self.options)
        if not self.fits(cheapest):
            low, high = (
                self.plan(cheapest).cost(),
                self.plan(tuple(bits[-1] for bits in self.options)).cost(),
            )
            raise BudgetError(
                f"{self.budget}: no plan within the options costs so little; feasible: {low.average_bits:.3g} to "
                f"{high.average_bits:.3g} average bits, {low.bytes:,} to {high.bytes:,} bytes, a ratio of {high.ratio:.2f} to "
                f"{low.ratio:.2f}, {low.bit_ops:,} to {high.bit_ops:,} bit operations"
            )

    def plan(self, choice: Choice) -> Plan:
        """The choice as a plan."""
        weights, macs = (
            dict(zip(self.names, counts, strict=True)) for counts in (self.weights, self.macs)
        )
        pairs = list(zip(self.names, choice, strict=True))
        activations = {
            name: input_bits(option) for name, option in pairs if input_bits(option) != FLOAT
        }
        return Plan(
            {name: weight_bits(option) for name, option in pairs},
            weights=weights,
            macs=macs,
            activations=activations,
        )

    def choice(self, indices: Sequence[int]) -> Choice:
        """The choice of each layer's option by its index."""
        return tuple(bits[index] for bits, index in zip(self.options, indices, strict=True))

    def price(self, choice: Choice) -> float:
        """What the choice costs, in the budget's terms."""
        return float(self.prices @ np.array([int(bits) for bits in choice], float))

    def fits(self, choice: Choice) -> bool:
        """Whether the choice is within the budget."""
        return self._left(choice) >= 0

    def _left(self, choice: Sequence[int]) -> float:
        return self.limit * (1 + 1e-12) - self.price(tuple(choice))

    def project(self, choice: Choice, loss: np.ndarray, *, keep: int | None = None) -> Choice:
        """The choice brought within the budget, and filled up to it where that does not hurt.

        Down by the single-layer steps that cost least, then up by those that gain most.

        Args:
            choice: any.
            loss: of each layer alone, (layers, widths), by ``width_index``.
            keep: a layer to leave as it is while others can be changed instead.

        """
        bits, rows = list(choice), loss.tolist()
        for spared in (keep, None):
            self._walk(bits, rows, -1, spared)
        if self.budget is not None:
            self._walk(bits, rows, 1, keep)
        return tuple(bits)

    def _walk(self, bits: list[int], loss: list[list[float]], way: int, keep: int | None) -> None:
        """Take one step after the other, the best first: down until the bits fit, or up as far as
        they do and lose less.
        """
        prices: list[float] = self.prices.tolist()
        left = self._left(bits)
        if way < 0 and left >= 0:
            return

        def step(layer: int) -> list[tuple[float, int, int]]:
            now, own = bits[layer], loss[layer]
            near = [
                to
                for to in self.near[layer][now, way]
                if way < 0 or prices[layer] * (int(to) - int(now)) <= left
            ]
            rates = [
                (
                    (own[width_index(to)] - own[width_index(now)])
                    / max(prices[layer] * abs(int(to) - int(now)), 1e-9),
                    to,
                )
                for to in near
            ]
            best = min(rates, key=lambda one: (one[0], own[width_index(one[1])]), default=None)
            return [] if best is None else [(best[0], layer, best[1])]

        steps = [one for layer in range(len(bits)) if layer != keep for one in step(layer)]
        heapq.heapify(steps)
        while steps and (way > 0 or left < 0):
            rate, layer, to = heapq.heappop(steps)
            price = prices[layer] * (int(to) - int(bits[layer]))
            if way > 0 and rate >= 0:
                continue
            if way < 0 or price <= left:  # else the layer may have another step, which does fit
                bits[layer], left = to, left - price
            for one in step(layer):
                heapq.heappush(steps, one)


def single_layers(
    options: Sequence[Sequence[int]],
) -> dict[tuple[int, int], tuple[int | None, ...]]:
    """By layer and bits, the choice that quantizes that layer alone."""
    pairs = [(layer, bits) for layer, possible in enumerate(options) for bits in possible]
    return {
        (layer, bits): tuple(bits if at == layer else None for at in range(len(options)))
        for layer, bits in pairs
    }


def layer_options(
    names: Sequence[str], options: Sequence[WidthLike], pins: Mapping[str, WidthLike]
) -> tuple[tuple[Width, ...], ...]:
    """The options of each layer, ascending; pinned layers have one.

    Raises:
        PlanError: no options, bits out of range, or a pin for a layer that is not there.

    """
    if not options:
        raise PlanError("options: expected at least one number of bits, got none")
    ascending = tuple(sorted({read_width(bits, "options") for bits in options}, key=by_size))
    for name in pins:
        if name not in names:
            raise PlanError(f"pin {name}: no layer that is searched{nearest(name, names)}")
    pinned = {name: read_width(bits, f"pin {name}") for name, bits in pins.items()}
    return tuple((pinned[name],) if name in pinned else ascending for name in names)


def _near(options: Sequence[int]) -> dict[tuple[int, int], tuple[int, ...]]:
    """By bits and way, -1 or 1, the options of the next size that way: several where grids cost the
    same, none at the end.
    """
    steps = {}
    for now, way in itertools.product(options, (-1, 1)):
        further = [option for option in options if (int(option) - int(now)) * way > 0]
        steps[now, way] = tuple(_next(now, further))
        if isinstance(now, Both):  # in one of the two, the other kept
            kept = [
                [to for to in further if part(to) == part(now)]
                for part in (weight_bits, input_bits)
            ]
            steps[now, way] = tuple(to for those in kept for to in _next(now, those))
    return steps


def _next(now: int, options: Sequence[int]) -> list[int]:
    """Those of the size nearest to ``now``."""
    size = min((abs(int(option) - int(now)) for option in options), default=0)
    return [option for option in options if abs(int(option) - int(now)) == size]


def _linear(
    budget: Budget | None, weights: np.ndarray, macs: np.ndarray
) -> tuple[np.ndarray, float]:
    """A budget as prices a bit and a limit."""
    if budget is None:
        return weights, math.inf
    if budget.bit_ops is not None:
        return macs, float(budget.bit_ops)
    if budget.bytes is not None:
        return weights, 8.0 * budget.bytes
    average = budget.average_bits if budget.average_bits is not None else 32 / (budget.ratio or 1)
    return weights, average * float(weights.sum())
