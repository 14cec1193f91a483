"""The belief that the policy reports: its probabilities are those of whole choices that fit."""

import itertools

import numpy as np
import pytest
from tests.dnq.test_agent import ACTIONS, Planted, space_of

from octavo.dnq.agent import dnq
from octavo.dnq.belief import Belief
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.reinforce import Reinforce
from octavo.plan import Budget
from octavo.progress import Event


def beliefs_of(budget: Budget | None, evaluations: int = 40) -> list[Belief]:
    space = within(space_of(3), budget)
    events: list[Event] = []
    journal = Journal(None, space.actions, {})
    evaluator = Evaluator(space, Planted(), journal, evaluations, progress=events.append)
    dnq(evaluator, settings=Reinforce(patience=3, before=10, after=5, imagined=16))
    return [event.detail for event in events if isinstance(event.detail, Belief)]


def test_each_layer_has_a_distribution_over_the_actions_that_fit() -> None:
    beliefs = beliefs_of(Budget(average_bits=2.4))  # 4 steps of 10 bits beyond the cheapest
    assert beliefs
    for belief in beliefs:
        assert belief.probabilities.shape == (3, len(ACTIONS))
        assert belief.probabilities.sum(1) == pytest.approx(np.ones(3))
        assert belief.probabilities[:, 2:].max() < 1e-9  # no plan that fits has 4 bits
        fitting = [c for c in itertools.product(range(4), repeat=3) if sum(c) <= 1]
        assert 0 <= belief.entropy <= np.log(len(fitting)) + 1e-9
    assert [belief.measured for belief in beliefs] == sorted(belief.measured for belief in beliefs)
    assert all(len(belief.rewards) == Reinforce().batch for belief in beliefs)


def test_without_a_budget_the_middle_of_the_range_stands_for_all() -> None:
    beliefs = beliefs_of(None)
    assert {belief.limit for belief in beliefs} == {3 * 10 * 3.5}
