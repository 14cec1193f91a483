"""Every method: against brute force over every choice, and within its evaluations."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from tests.dnq.environments import Formula

from octavo.dnq import methods
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.methods import method_of, register_method
from octavo.dnq.prices import within
from octavo.dnq.rivals import proposals
from octavo.dnq.settings import METHODS
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.errors import OctavoError, PlanError
from octavo.plan import Budget


@pytest.fixture(autouse=True)
def _fewer_neighbours(brief_practice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evolution looks at fewer neighbours: enough for three layers."""
    monkeypatch.setattr(proposals, "CHILDREN", 32)


SEARCHING = tuple(name for name in METHODS if name != "uniform")
ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))
WEIGHTS = (100, 37, 260)
MACS = (9, 400, 31)
LOSSES = np.array([[0.9, 0.35, 0.11, 0.04], [2.0, 0.7, 0.3, 0.02], [0.5, 0.21, 0.06, 0.01]])


def additive(losses: np.ndarray) -> Callable[[Partial], float]:
    return lambda choice: sum(
        float(losses[layer, at]) for layer, at in enumerate(choice) if at is not None
    )


def space_of(budget: Budget | None, layers: int = 3, pins: dict[int, int] | None = None) -> Space:
    pinned = {at: (Action.parse(bits),) for at, bits in (pins or {}).items()}
    options = tuple(pinned.get(at, ACTIONS) for at in range(layers))
    return within(
        Space(tuple("abcdefgh"[:layers]), options, WEIGHTS[:layers], MACS[:layers]), budget
    )


def evaluator_of(
    space: Space,
    losses: np.ndarray = LOSSES,
    evaluations: int = 100,
    trade_off: float = 0.0,
    seed: int = 0,
) -> tuple[Evaluator, Formula]:
    lost = additive(losses)
    environment = Formula(lambda choice: 1.5 - lost(choice))
    journal = Journal(None, space.actions, {})
    evaluator = Evaluator(space, environment, journal, evaluations, trade_off=trade_off, seed=seed)
    return evaluator, environment


def brute(space: Space, losses: np.ndarray, trade_off: float = 0.0) -> tuple[float, Choice]:
    """The best reward of every choice that the budget allows, and the choice."""
    best = (-math.inf, tuple[int, ...]())
    for choice in itertools.product(*(range(len(some)) for some in space.actions)):
        cost = space.plan(choice).cost()
        if space.fits(choice):
            reward = 1.5 - additive(losses)(choice) + trade_off * math.log2(cost.ratio)
            best = max(best, (reward, choice))
    return best


ALL_BUDGETS = [Budget(average_bits=2.5), Budget(average_bits=32 / 8.5), Budget(bit_ops=2000)]


@pytest.mark.parametrize("budget", ALL_BUDGETS)
@pytest.mark.parametrize("method", SEARCHING)
def test_each_method_finds_the_best_of_a_small_space(method: str, budget: Budget) -> None:
    space = space_of(budget)
    evaluator, _ = evaluator_of(space)
    method_of(method)(evaluator)
    reward, choice = brute(space, LOSSES)
    assert evaluator.best.choice == choice
    assert evaluator.best.objective == pytest.approx(reward)


@pytest.mark.parametrize(
    ("method", "trade_off"), [("dnq", 0.02), ("dnq", 0.3), ("random", 1.0), ("cmaes", 0.3)]
)
def test_the_methods_that_measure_find_the_best_of_a_small_space_under_a_trade_off(
    method: str, trade_off: float
) -> None:
    space = space_of(None)
    evaluator, _ = evaluator_of(space, trade_off=trade_off)
    method_of(method)(evaluator)
    reward, choice = brute(space, LOSSES, trade_off)
    assert evaluator.best.choice == choice
    assert evaluator.reward(choice, evaluator.best.objective) == pytest.approx(reward)


@pytest.mark.parametrize("evaluations", [1, 14, 20])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_scores_more_than_it_may_and_nothing_twice(method: str, evaluations: int) -> None:
    evaluator, environment = evaluator_of(
        space_of(Budget(average_bits=3.4)), evaluations=evaluations
    )
    if evaluations == 1 and method not in ("random", "uniform"):
        with pytest.raises(PlanError, match=r"trials: expected at least 14.*got 1"):
            method_of(method)(evaluator)
        assert not environment.asked
        return
    method_of(method)(evaluator)
    assert len(environment.asked) <= evaluations
    assert len(set(environment.asked)) == len(environment.asked)
    assert evaluator.left == evaluations - len(environment.asked)
    assert 1 <= len(evaluator.trials) == sum(None not in choice for choice in environment.asked)
    assert all(evaluator.space.fits(trial.choice) for trial in evaluator.trials)


@pytest.mark.parametrize("method", ["dnq", "tpe", "cmaes", "random"])
def test_the_methods_that_learn_or_draw_spend_all_that_they_may(method: str) -> None:
    evaluator, environment = evaluator_of(space_of(None), evaluations=20, trade_off=0.2)
    method_of(method)(evaluator)
    assert len(environment.asked) == 20


@pytest.mark.parametrize("method", METHODS)
def test_a_space_smaller_than_the_evaluations_comes_to_an_end(method: str) -> None:
    evaluator, environment = evaluator_of(
        space_of(Budget(average_bits=3.4), layers=2), evaluations=300
    )
    method_of(method)(evaluator)
    assert len(set(environment.asked)) == len(environment.asked) <= 1 + 8 + 16


@pytest.mark.parametrize("method", METHODS)
def test_a_single_layer_gets_the_most_that_fits(method: str) -> None:
    evaluator, _ = evaluator_of(space_of(Budget(average_bits=4.5), layers=1), evaluations=6)
    method_of(method)(evaluator)
    assert evaluator.best.choice == (2,)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_scores_the_same_choices_in_the_same_order(method: str) -> None:
    orders = []
    for seed in (5, 5):
        evaluator, environment = evaluator_of(
            space_of(None), evaluations=20, trade_off=0.2, seed=seed
        )
        method_of(method)(evaluator)
        orders.append(environment.asked)
    assert orders[0] == orders[1]


@pytest.mark.parametrize("method", ["random", "tpe", "cmaes"])  # of the policy: see test_agent
def test_another_seed_scores_others(method: str) -> None:
    def asked(seed: int) -> list[Partial]:
        evaluator, environment = evaluator_of(
            space_of(None), evaluations=17, trade_off=0.2, seed=seed
        )
        method_of(method)(evaluator)
        return environment.asked

    assert len({tuple(asked(seed)) for seed in range(4)}) > 1


def test_losses_are_those_of_single_layers() -> None:
    evaluator, environment = evaluator_of(space_of(None))
    assert np.allclose(evaluator.losses(), LOSSES)
    assert environment.asked[0] == (None, None, None)
    assert len(environment.asked) == 13
    assert not evaluator.trials


def test_a_method_of_ones_own_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))

    def coarsest(evaluator: Evaluator) -> None:
        evaluator.objectives([evaluator.space.cheapest])

    register_method("coarsest", coarsest)
    evaluator, environment = evaluator_of(space_of(None))
    method_of("coarsest")(evaluator)
    assert environment.asked == [(0, 0, 0)]
    with pytest.raises(PlanError, match="method coarsest: expected a new name"):
        register_method("coarsest", method_of("exact"))
    with pytest.raises(PlanError, match=r"expected one of dnq, .*, coarsest, got 'coarse'"):
        method_of("coarse")


def test_a_file_that_is_loaded_twice_registers_its_method_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))

    def load() -> Callable[[Evaluator], None]:
        def own(evaluator: Evaluator) -> None:
            evaluator.objectives([evaluator.space.cheapest])

        register_method("own", own)
        return own

    first, second = load(), load()
    assert first is not second
    assert method_of("own") is second


@pytest.mark.parametrize(
    ("method", "package"), [("tpe", "optuna"), ("cmaes", "optuna"), ("cmaes", "cmaes")]
)
def test_without_a_package_the_error_names_the_extra_before_anything_is_solved(
    method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"^method {method}: needs {package}: install octavo with its extra search$"
    with pytest.raises(OctavoError, match=message):
        method_of(method)
    assert callable(method_of("exact"))


def test_methods_import_what_they_need_when_they_are_called() -> None:
    code = "import sys, octavo.dnq.methods; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"scipy.optimize", "optuna", "cmaes"} & set(loaded)
