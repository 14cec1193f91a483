"""The front of a search: the plans that no other beats in both objective and cost."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from octavo.dnq.space import Choice, Space
from octavo.errors import BudgetError

__all__ = ["Estimate", "best_within", "front_of", "knee_of", "undominated"]


class Rated(Protocol):
    """A choice and its objective: a trial or an estimate."""

    @property
    def choice(self) -> Choice:
        """The indices into each layer's actions."""

    @property
    def objective(self) -> float:
        """The objective, higher is better."""


R = TypeVar("R", bound=Rated)
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A choice that a policy proposes for some budget, and that was not measured.

    Attributes:
        choice: the indices into each layer's actions.
        objective: the objective that the world model estimates, higher is better.

    """

    choice: Choice
    objective: float


def front_of(rated: Iterable[R], space: Space) -> tuple[R, ...]:
    """Return the plans that no other beats in both objective and cost, by rising cost."""
    return tuple(
        undominated(rated, lambda each: space.cost(each.choice), lambda each: each.objective)
    )


def undominated(
    items: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]
) -> list[T]:
    """Return the items that no other beats in both value and cost, by rising cost."""
    front: list[T] = []
    for item in sorted(items, key=lambda item: (cost(item), -value(item))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front


def best_within(rated: Sequence[R], space: Space, count: int = 1) -> list[R]:
    """Return the ``count`` plans of highest objective within the limit, the best first.

    The choices are the same for every limit, so a higher limit never gives a worse objective.

    Raises:
        BudgetError: none of them fits; the message says what they cost.

    """
    fitting = [each for each in rated if space.fits(each.choice)]
    if not fitting:
        costs = [space.cost(each.choice) for each in rated]
        raise BudgetError(
            f"{space.budget}: none of {len(costs)} plans of this search fits; they take "
            f"{min(costs) / space.limit:.3g} to {max(costs) / space.limit:.3g} times what it allows"
        )
    return sorted(fitting, key=lambda each: -each.objective)[:count]


def knee_of(front: Sequence[R], space: Space) -> R:
    """Return the knee of a front: the plan farthest above the line between its two ends.

    Costs and objectives are in units of the range between the ends. Objectives that are all
    negative, as a divergence with a minus is, count by their logarithm.
    """
    costs = np.array([space.cost(each.choice) for each in front])
    objectives = np.array([each.objective for each in front])
    if objectives.max() < 0:
        objectives = -np.log(-objectives)
    gained = (objectives - objectives[0]) / max(float(np.ptp(objectives)), 1e-300)
    spent = (costs - costs[0]) / max(float(np.ptp(costs)), 1e-300)
    above = gained - spent
    if not math.isfinite(float(above.max())):
        return front[0]
    return front[int(above.argmax())]
