"""The rivals: against brute force over every choice, within their evaluations, and honest about
what is not installed."""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment, Partial
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.rivals.methods import RIVALS, exact_choice, uniform_choice
from octavo.dnq.space import Choice, Space
from octavo.errors import OctavoError, PlanError
from octavo.plan import Budget

METHODS: dict[str, Callable[[Evaluator], None]] = {"dnq": dnq, **RIVALS}
SEARCHING = tuple(name for name in METHODS if name != "uniform")
BITS = (2, 3, 4, 5)
WEIGHTS, MACS = (100, 37, 260), (9, 400, 31)
LOSS = np.full((3, 9), np.nan)
LOSS[:, 2:6] = [[0.9, 0.35, 0.11, 0.04], [2.0, 0.7, 0.3, 0.02], [0.5, 0.21, 0.06, 0.01]]


class Synthetic(Environment):
    """Scores from a formula; counts what it is asked."""

    def __init__(self, lost: Callable[[Partial], float]) -> None:
        self.lost, self.asked = lost, list[tuple[int | None, ...]]()

    def output_sum(self) -> None:
        return None

    def scores(self, choices: Sequence[Partial]) -> list[float]:
        self.asked += map(tuple, choices)
        return [1.5 - self.lost(choice) for choice in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def additive(loss: np.ndarray) -> Callable[[Partial], float]:
    return lambda choice: sum(
        float(loss[layer, bits]) for layer, bits in enumerate(choice) if bits is not None
    )


def space_of(budget: Budget | None, layers: int = 3, pins: dict[int, int] | None = None) -> Space:
    options = (
        tuple((pins[at],) if at in (pins or {}) else BITS for at in range(layers))
        if pins
        else (BITS,) * layers
    )
    return Space(tuple("abcdefgh"[:layers]), options, WEIGHTS[:layers], MACS[:layers], budget)


def bench_of(
    space: Space,
    loss: np.ndarray = LOSS,
    evaluations: int = 100,
    trade_off: float = 0.0,
    seed: int = 0,
) -> tuple[Evaluator, Synthetic]:
    environment = Synthetic(additive(loss))
    return Evaluator(
        space, environment, Journal(None, {}), evaluations, trade_off=trade_off, seed=seed
    ), environment


def brute(space: Space, loss: np.ndarray, trade_off: float = 0.0) -> tuple[float, Choice]:
    """The best reward of every choice that the budget allows, and the choice."""
    best = (-math.inf, tuple[int, ...]())
    for choice in itertools.product(*space.options):
        average = sum(w * b for w, b in zip(space.weights, choice, strict=True)) / sum(
            space.weights
        )
        if space.budget is None or space.budget.allows(space.plan(choice).cost()):
            reward = 1.5 - additive(loss)(choice) + trade_off * math.log2(32 / average)
            best = max(best, (reward if trade_off else 1.5 - additive(loss)(choice), choice))
    return best


ALL_BUDGETS = [Budget(average_bits=2.5), Budget(ratio=8.5), Budget(bit_ops=2000)]


@pytest.mark.parametrize("budget", ALL_BUDGETS)
@pytest.mark.parametrize("method", SEARCHING)
def test_each_method_finds_the_best_of_a_small_space(method: str, budget: Budget) -> None:
    space = space_of(budget)
    bench, _ = bench_of(space)
    METHODS[method](bench)
    reward, choice = brute(space, LOSS)
    assert bench.best.choice == choice
    assert bench.best.score == pytest.approx(reward)


@pytest.mark.parametrize(
    ("method", "trade_off"), [("dnq", 0.02), ("dnq", 0.3), ("random", 1.0), ("cmaes", 0.3)]
)
def test_the_methods_that_measure_find_the_best_of_a_small_space_under_a_trade_off(
    method: str, trade_off: float
) -> None:
    space = space_of(None)
    bench, _ = bench_of(space, trade_off=trade_off)
    METHODS[method](bench)
    reward, choice = brute(space, LOSS, trade_off)
    assert bench.best.choice == choice
    assert bench.reward(choice, bench.best.score) == pytest.approx(reward)


def losses(layers: int, seed: int, spread: float) -> np.ndarray:
    """Losses that mostly fall with the bits, over as many orders of magnitude as asked."""
    drawn = np.random.default_rng(seed)
    scale = 10.0 ** drawn.uniform(-spread, 0, (layers, 1))
    return np.asarray(
        scale
        * (
            4.0 ** -np.arange(9)[None] * drawn.uniform(0.3, 3, (layers, 9))
            - 0.001 * drawn.random((layers, 9))
        )
    )


@pytest.mark.parametrize("spread", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_exact_solution_is_that_of_brute_force(seed: int, spread: float) -> None:
    drawn = np.random.default_rng(100 + seed)
    weights = tuple(int(w) for w in drawn.integers(10, 10_000, 5))
    loss = losses(5, seed, spread)
    for average in (2.3, 3.1, 4.4):
        space = Space(tuple("abcde"), (BITS,) * 5, weights, (1,) * 5, Budget(average_bits=average))
        bench, _ = bench_of(space, loss)
        found = exact_choice(bench, loss)
        reward, _choice = brute(space, loss)
        assert space.fits(found)
        assert additive(loss)(found) <= 1.5 - reward + 1e-9


def test_the_exact_solution_keeps_pins_and_scores_one_whole_choice() -> None:
    space = space_of(Budget(average_bits=3.0), pins={1: 8})
    loss = LOSS.copy()
    loss[1, 8] = 0.0
    bench, environment = bench_of(space, loss)
    RIVALS["exact"](bench)
    assert bench.best.choice == brute(space, loss)[1]
    assert bench.best.choice[1] == 8
    assert sum(None not in choice for choice in environment.asked) == 1


@pytest.mark.parametrize("evaluations", [1, 14, 20])
@pytest.mark.parametrize("method", list(METHODS))
def test_no_method_scores_more_than_it_may_and_nothing_twice(method: str, evaluations: int) -> None:
    bench, environment = bench_of(space_of(Budget(average_bits=3.4)), evaluations=evaluations)
    if evaluations == 1 and method not in ("random", "uniform"):
        with pytest.raises(PlanError, match=r"trials: expected at least 14.*got 1"):
            METHODS[method](bench)
        assert not environment.asked
        return
    METHODS[method](bench)
    assert len(environment.asked) <= evaluations
    assert len(set(environment.asked)) == len(environment.asked)
    assert bench.left == evaluations - len(environment.asked)
    assert 1 <= len(bench.trials) == sum(None not in choice for choice in environment.asked)
    assert all(bench.space.fits(trial.choice) for trial in bench.trials)


@pytest.mark.parametrize("method", ["dnq", "tpe", "cmaes", "random"])
def test_the_methods_that_learn_or_draw_spend_all_that_they_may(method: str) -> None:
    bench, environment = bench_of(space_of(None), evaluations=20, trade_off=0.2)
    METHODS[method](bench)
    assert len(environment.asked) == 20


@pytest.mark.parametrize("method", list(METHODS))
def test_a_space_smaller_than_the_evaluations_comes_to_an_end(method: str) -> None:
    bench, environment = bench_of(space_of(Budget(average_bits=3.4), layers=2), evaluations=300)
    METHODS[method](bench)
    assert len(set(environment.asked)) == len(environment.asked) <= 1 + 8 + 16


@pytest.mark.parametrize("method", list(METHODS))
def test_a_single_layer_gets_the_most_that_fits(method: str) -> None:
    bench, _ = bench_of(space_of(Budget(average_bits=4.5), layers=1), evaluations=6)
    METHODS[method](bench)
    assert bench.best.choice == (4,)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_same_seed_scores_the_same_choices_in_the_same_order(method: str) -> None:
    orders = []
    for seed in (5, 5):
        bench, environment = bench_of(space_of(None), evaluations=20, trade_off=0.2, seed=seed)
        METHODS[method](bench)
        orders.append(environment.asked)
    assert orders[0] == orders[1]


@pytest.mark.parametrize("method", ["random", "tpe", "cmaes"])  # of the controller: see test_dnq
def test_another_seed_scores_others(method: str) -> None:
    def asked(seed: int) -> list[tuple[int | None, ...]]:
        bench, environment = bench_of(space_of(None), evaluations=17, trade_off=0.2, seed=seed)
        METHODS[method](bench)
        return environment.asked

    assert len({tuple(asked(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("budget", "pins", "expected"),
    [
        (Budget(average_bits=3.99), {}, (3, 3, 3)),
        (Budget(average_bits=4), {}, (4, 4, 4)),
        (Budget(average_bits=8), {}, (5, 5, 5)),
        (Budget(ratio=16), {}, (2, 2, 2)),
        (Budget(average_bits=4), {1: 8}, (3, 8, 3)),  # pins count
        (Budget(average_bits=4), {1: 2}, (4, 2, 4)),
        (None, {1: 2}, (5, 2, 5)),
    ],
)
def test_uniform_is_the_most_that_the_budget_allows(
    budget: Budget | None, pins: dict[int, int], expected: Choice
) -> None:
    space = space_of(budget, pins=pins)
    assert uniform_choice(space) == expected
    bench, environment = bench_of(space, np.zeros((3, 9)))
    RIVALS["uniform"](bench)
    assert environment.asked == [expected]


def test_without_a_budget_the_uniform_choice_costs_no_more_than_another() -> None:
    space = space_of(None)
    assert uniform_choice(space, (4, 4, 4)) == (4, 4, 4)
    assert uniform_choice(space, (5, 5, 3)) == (3, 3, 3)
    assert uniform_choice(space, (2, 2, 2)) == (2, 2, 2)


def test_greedy_mends_what_the_additive_model_gets_wrong() -> None:
    """Layer 0 alone loses little at 2 bits, but a lot in company."""
    loss = LOSS.copy()
    loss[0, 2:6] = [0.01, 0.009, 0.008, 0.007]

    def lost(choice: Partial) -> float:
        return additive(loss)(choice) + 3.0 * (choice[0] == 2 and None not in choice)

    space = space_of(Budget(average_bits=3.0))
    environment = Synthetic(lost)
    bench = Evaluator(space, environment, Journal(None, {}), 100)
    RIVALS["greedy"](bench)
    assert bench.trials[0].choice[0] == 2
    assert bench.best.choice[0] > 2
    assert bench.best.score > bench.trials[0].score


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_without_optuna_the_error_names_the_extra(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    bench, environment = bench_of(space_of(Budget(average_bits=3.4)))
    with pytest.raises(OctavoError, match=r"optuna: pip install 'octavo\[search\]'") as error:
        METHODS[method](bench)
    assert "\n" not in str(error.value)
    assert not environment.asked  # before anything is spent


def test_without_cmaes_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    bench, environment = bench_of(space_of(Budget(average_bits=3.4)))
    with pytest.raises(OctavoError, match=r"cmaes: pip install 'octavo\[search\]'"):
        METHODS["cmaes"](bench)
    assert not environment.asked


def test_losses_are_those_of_single_layers() -> None:
    bench, environment = bench_of(space_of(None))
    found: Any = bench.losses()
    assert np.allclose(found[:, :9], LOSS, equal_nan=True)
    assert np.isnan(found[:, 9:]).all()  # of the other grid
    assert environment.asked[0] == (None, None, None)
    assert len(environment.asked) == 13
    assert not bench.trials
