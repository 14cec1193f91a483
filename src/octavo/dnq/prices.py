"""Prices: what the actions of a space cost in a budget's unit, and the most that they may cost."""

import math
from dataclasses import replace

import numpy as np

from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.space import Space, factor_costs
from octavo.errors import BudgetError
from octavo.plan import Budget

__all__ = ["check_budget", "in_bytes", "most_file_bytes", "within"]

# A budget this close below the smallest file that was packed is not refused: the file of the final
# choice has other codes, and may be so much smaller.
NEAR = 0.99


def within(space: Space, budget: Budget | None, sizes: FileSizes | None = None) -> Space:
    """Return the space with a budget, and with costs and a limit in the budget's unit.

    The unit is nominal bits for ``average_bits``, bit operations for ``bit_ops``, and bytes of the
    packed file for ``bytes`` and ``ratio``: these two need ``sizes``. Without a budget the costs
    are bytes of the file where ``sizes`` are given, else nominal bits, and the limit is infinite.

    Args:
        space: the space of a survey, or one with another budget.
        budget: the budget; None allows every choice.
        sizes: the sizes of the packed file, as the environment estimates them.

    Raises:
        BudgetError: no choice is within the budget; the message has the feasible range. Or a budget
            other than ``bit_ops`` where bits of inputs are searched for; or no ``sizes`` where the
            budget needs them.

    """
    _check_inputs_count(space, budget)
    costs, limit = _costs_and_limit(space, budget, sizes)
    priced = replace(space, budget=budget, costs=costs, limit=limit)
    if not priced.fits(priced.cheapest):
        raise BudgetError(
            f"{budget}: no plan within the options costs so little; "
            f"feasible: {_feasible(space, sizes)}"
        )
    return priced


def in_bytes(space: Space, sizes: FileSizes) -> Space:
    """Return the space with costs in bytes of the file; where bits of inputs are searched for, the
    space as it is.
    """
    if _searches_inputs(space):
        return space
    return within(space, None, sizes)


def check_budget(space: Space, budget: Budget | None) -> None:
    """Raise BudgetError for a budget that no choice meets, as far as that is known before anything
    is quantized: a budget for the file is not refused here.
    """
    _check_inputs_count(space, budget)
    if budget is not None and not budget.of_file:
        within(space, budget)


def _check_inputs_count(space: Space, budget: Budget | None) -> None:
    """Raise BudgetError where bits of inputs are searched for and no budget counts them."""
    if _searches_inputs(space) and (budget is None or budget.bit_ops is None):
        raise BudgetError(
            f"activations: expected a budget of bit_ops, which counts them, got {budget or 'none'}"
        )


def _searches_inputs(space: Space) -> bool:
    return any(action.input_bits is not None for row in space.actions for action in row)


def most_file_bytes(budget: Budget, float_bytes: int) -> float:
    """Return the most bytes of the file that a budget of ``bytes`` or ``ratio`` allows.

    Args:
        budget: the budget.
        float_bytes: bytes of the network's tensors in float, as ``Packed.float_bytes``.

    """
    return budget.bytes if budget.bytes is not None else float_bytes / (budget.ratio or 1)


def _costs_and_limit(
    space: Space, budget: Budget | None, sizes: FileSizes | None
) -> tuple[np.ndarray, float]:
    nominal = factor_costs(space.actions, space.weights)
    if budget is None:
        return (nominal if sizes is None else sizes.codes), math.inf
    if budget.average_bits is not None:
        return nominal, budget.average_bits * float(sum(space.weights))
    if budget.bit_ops is not None:
        return factor_costs(space.actions, space.macs), float(budget.bit_ops)
    if sizes is None:
        raise BudgetError(f"{budget}: expected the sizes of the packed file, got none")
    most = most_file_bytes(budget, sizes.float_bytes)
    limit = most - sizes.rest
    if most >= NEAR * sizes.least:  # nearly the smallest file: only the real one tells
        cheapest, _ = _range(sizes.codes)
        limit = max(limit, cheapest)
    return sizes.codes, limit


def _feasible(space: Space, sizes: FileSizes | None) -> str:
    """Return the range of what choices cost, in every unit of a budget that is known."""
    bits = factor_costs(space.actions, space.weights)
    bit_ops = factor_costs(space.actions, space.macs)
    low, high = _range(bits)
    weights = sum(space.weights)
    parts = [f"{low / weights:.3g} to {high / weights:.3g} average bits"]
    if sizes is not None:
        low, high = (each + sizes.rest for each in _range(sizes.codes))
        low = min(low, sizes.least)
        parts += [
            f"a file of about {low:,.0f} to {high:,.0f} bytes",
            f"a ratio of about {sizes.float_bytes / high:.2f} to {sizes.float_bytes / low:.2f}",
        ]
    low, high = _range(bit_ops)
    return ", ".join([*parts, f"{low:,.0f} to {high:,.0f} bit operations"])


def _range(costs: np.ndarray) -> tuple[float, float]:
    """Return the cost of the cheapest choice and of the dearest."""
    return float(np.nanmin(costs, 1).sum()), float(np.nanmax(costs, 1).sum())
