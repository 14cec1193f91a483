"""The front: what no other plan beats, the best within a budget, and the knee."""

import itertools

import numpy as np
import pytest

from octavo.dnq.front import Estimate, best_within, front_of, knee_of
from octavo.dnq.space import Action, Space
from octavo.errors import BudgetError
from octavo.formats.width import Width
from octavo.plan import Budget

ACTIONS = tuple(Action(Width(bits)) for bits in (2, 3, 4))
COSTS = np.array([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]])


def space_of(limit: float = float("inf")) -> Space:
    budget = None if limit == float("inf") else Budget(bytes=int(limit))
    return Space(
        ("a", "b"), (ACTIONS, ACTIONS), (8, 8), (8, 8), budget=budget, costs=COSTS, limit=limit
    )


def estimates() -> list[Estimate]:
    generator = np.random.default_rng(0)
    choices = list(itertools.product(range(3), repeat=2))
    return [Estimate(choice, -float(generator.uniform(1, 9))) for choice in choices]


def test_the_front_is_what_no_other_beats() -> None:
    space = space_of()
    rated = estimates()
    beaten = {
        one
        for one in rated
        for other in rated
        if other is not one
        and space.cost(other.choice) <= space.cost(one.choice)
        and other.objective >= one.objective
    }
    front = front_of(rated, space)
    assert set(front) == set(rated) - beaten
    assert [space.cost(each.choice) for each in front] == sorted(
        space.cost(each.choice) for each in front
    )


def test_of_equal_costs_only_the_better_one_is_on_the_front() -> None:
    same = [Estimate((0, 0), -2.0), Estimate((0, 0), -1.0)]
    assert front_of(same, space_of()) == (same[1],)


@pytest.mark.parametrize("limit", [11.0, 14.0, 22.0, 44.0])
def test_the_best_within_a_limit_fits_and_is_the_best(limit: float) -> None:
    space = space_of(limit)
    rated = estimates()
    fitting = [each for each in rated if space.cost(each.choice) <= limit]
    (best,) = best_within(rated, space)
    assert best.objective == max(each.objective for each in fitting)
    assert best in fitting
    assert len(best_within(rated, space, 3)) == min(3, len(fitting))


def test_a_limit_that_nothing_meets_is_refused() -> None:
    with pytest.raises(BudgetError, match="none of 9 plans of this search fits"):
        best_within(estimates(), space_of(5.0))


def test_the_knee_is_where_more_bytes_begin_to_bring_less() -> None:
    # By the logarithm the objective rises by 3, .1 and .1 while the cost rises by 1, 2 and 9.
    objectives = (-(np.e**3), -1.0, -(np.e**-0.1), -(np.e**-0.2))
    choices = ((0, 0), (1, 0), (2, 0), (1, 1))
    front = [Estimate(*pair) for pair in zip(choices, map(float, objectives), strict=True)]
    assert knee_of(front, space_of()).choice == (1, 0)


def test_the_knee_of_objectives_that_can_be_positive_takes_no_logarithm() -> None:
    front = [Estimate((0, 0), 10.0), Estimate((2, 0), 12.0), Estimate((1, 1), 90.0)]
    assert knee_of(front, space_of()).choice == (0, 0)  # both others lie on or below the line
    front = [Estimate((0, 0), 10.0), Estimate((2, 0), 80.0), Estimate((1, 1), 90.0)]
    assert knee_of(front, space_of()).choice == (2, 0)


def test_the_knee_of_a_single_plan_is_that_plan() -> None:
    only = Estimate((0, 0), -1.0)
    assert knee_of([only], space_of()) is only
