"""The rate at which a network's file just meets a budget.

A larger rate makes a smaller file. So the rate is bracketed and then found by interpolation between
the logarithms of rates and bytes, which are nearly on a line.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from octavo.errors import BudgetError
from octavo.plan import Budget, check_is_budget

__all__ = ["Sized", "check_file_budget", "within"]

NEAR = 0.99  # the least share of the budget that a file shall use
FIRST = 1.0  # the first rate that is tried
STEP = 4.0  # the factor between rates until one meets the budget
LARGEST = FIRST * STEP**6  # rate; from there on hardly anything but zeros is left
MOST = 8  # networks that are solved between the two rates of the bracket


class Sized(Protocol):
    """A network whose file has a size."""

    @property
    def file_bytes(self) -> int:
        """The bytes of its file."""

    @property
    def float_bytes(self) -> int:
        """The bytes of its tensors in float."""


Network = TypeVar("Network", bound=Sized)


@dataclass(frozen=True, eq=False)
class _Point(Generic[Network]):
    """A rate, and the network that it leads to."""

    rate: float
    network: Network
    file_bytes: int


def check_file_budget(budget: Budget, rate: float) -> None:
    """Raise BudgetError unless a rate can be found for the budget."""
    check_is_budget(budget)
    if not budget.of_file:
        raise BudgetError(
            f"budget: expected bytes or ratio, a limit on the file, got {budget}; the plan has the "
            "bits already"
        )
    if rate:
        raise BudgetError(f"budget: expected no rate beside it, got rate={rate}; it finds the rate")


def within(budget: Budget, solve: Callable[[float], Network]) -> Network:
    """Return the network of the largest file found that meets the budget: if possible 99 % of it
    or more.

    Args:
        budget: a limit on the file.
        solve: makes the network at a rate.

    Raises:
        BudgetError: no rate makes the file that small; the message has the least bytes found, and
            the rate of this file.

    """

    def at(rate: float) -> _Point[Network]:
        network = solve(rate)
        return _Point(rate, network, network.file_bytes)

    over = at(0.0)
    limit = budget.bytes or over.network.float_bytes / (budget.ratio or 1)
    if over.file_bytes <= limit:
        return over.network
    least = over
    under = at(FIRST)
    while under.file_bytes > limit:
        least = min(least, under, key=lambda point: point.file_bytes)
        if under.rate >= LARGEST:
            raise BudgetError(
                f"budget: expected at least {least.file_bytes} bytes, the least that any rate "
                f"makes of this plan (rate {least.rate:g} does), got {int(limit)}; give layers "
                "fewer bits"
            )
        over = under
        under = at(under.rate * STEP)
    best = under
    for _ in range(MOST):
        if best.file_bytes >= NEAR * limit:
            break
        middle = at(_between(over, under, limit))
        if middle.file_bytes > limit:
            over = middle
        else:
            under = middle
            best = max(best, middle, key=lambda point: point.file_bytes)
    return best.network


def _between(over: _Point[Network], under: _Point[Network], limit: float) -> float:
    """Return the rate at which the file would have a bit less than ``limit`` if logarithms were on
    a line; neither end is more than nine tenths away.
    """
    low = math.log(over.rate or under.rate / STEP**2)
    high = math.log(under.rate)
    aim = math.log(limit * (1 + NEAR) / 2)
    whole = math.log(over.file_bytes / under.file_bytes)
    share = (math.log(over.file_bytes) - aim) / whole if whole > 0 else 0.5
    return math.exp(low + (high - low) * min(0.9, max(0.1, share)))
