"""Where the trials suffice for all plans within the budget, all are measured and nothing else."""

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from octavo.dnq.enumeration import all_choices
from octavo.dnq.prices import within
from octavo.dnq.searching import search
from octavo.dnq.settings import METHODS
from octavo.dnq.space import Action, Space
from octavo.plan import Budget

ROW = tuple(map(Action.parse, (2, 3, 4, 5)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.floats(2, 5), st.integers(0, 300))
def test_it_is_all_choices_within_the_budget_or_none(
    weights: list[int], average: float, most: int
) -> None:
    layers = len(weights)
    names = tuple(map(str, range(layers)))
    actions = (ROW[:1], *[ROW] * (layers - 1))  # the first layer is pinned
    surveyed = Space(names, actions, tuple(weights), (1,) * layers)
    space = within(surveyed, Budget(average_bits=average))
    every = itertools.product(*(range(len(row)) for row in actions))
    expected = [choice for choice in every if space.fits(choice)]
    assert all_choices(space, most) == (expected if len(expected) <= most else None)
    assert all_choices(space, len(expected)) == expected
    assert all_choices(space, len(expected) - 1) is None


def test_a_space_of_very_many_choices_is_counted_no_further_than_needed() -> None:
    layers = 300
    names = tuple(map(str, range(layers)))
    space = Space(names, (ROW,) * layers, (7,) * layers, (1,) * layers)
    started = time.perf_counter()
    assert all_choices(space, 512) is None
    barely = within(space, Budget(average_bits=2 + 1.5 / layers))
    assert all_choices(barely, 512) is not None  # one layer or none has a bit more
    assert len(all_choices(barely, 512) or ()) == layers + 1
    assert time.perf_counter() - started < 10


def two_layers() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5))
    return model, [torch.randn(40, 6) for _ in range(2)]


@pytest.mark.parametrize("method", METHODS)
def test_two_layers_are_enumerated_whatever_the_method(method: str) -> None:
    if method in ("tpe", "cmaes"):
        pytest.importorskip("cmaes")
    model, inputs = two_layers()
    started = time.perf_counter()
    result = search(model, inputs, budget=Budget(average_bits=5), method=method)
    assert time.perf_counter() - started < 3
    assert {trial.choice for trial in result.trials} == set(itertools.product(range(4), repeat=2))
    assert result.exact == max(result.trials, key=lambda trial: trial.objective).plan


def test_an_objective_is_asked_for_all_plans_and_the_finalists_only() -> None:
    model, inputs = two_layers()
    calls: list[Any] = []

    def objective(network: nn.Module) -> float:
        calls.append(network)
        return -sum(float(weight.double().abs().sum()) for weight in network.parameters())

    result = search(model, inputs, budget=Budget(average_bits=3), objective=objective)
    assert len(calls) == len(result.trials) + len(result.finalists)
    assert all(math.isfinite(trial.objective) for trial in result.trials)
    assert len(result.trials) < 16  # those within the budget


def test_costs_that_are_missing_do_not_count() -> None:
    actions = (ROW[:2], ROW)
    costs = np.array([[1.0, 2.0, np.nan, np.nan], [1.0, 2.0, 3.0, 4.0]])
    space = Space(("a", "b"), actions, (1, 1), (1, 1), costs=costs, limit=4.0)
    assert all_choices(space, 9) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
