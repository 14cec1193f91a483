"""The result of a search: the front, and plans for other budgets."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.dnq import methods
from octavo.dnq.methods import register_method
from octavo.dnq.prices import in_bytes, within
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.errors import BudgetError
from octavo.plan import Budget, Plan
from octavo.ptq.calibration import calibrate

TRIALS = 60  # of 1,024 plans


def net() -> nn.Sequential:
    torch.manual_seed(3)
    sizes = [6, 9, 8, 7, 6, 4]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def inputs() -> list[Tensor]:
    return [torch.randn(80, 6, generator=torch.Generator().manual_seed(1))]


def found(**changes: Any) -> SearchResult:
    settings: dict[str, Any] = {"trials": TRIALS, "seed": 2}
    return search(net(), inputs(), **(settings | changes))


@pytest.fixture(scope="module")
def ranged() -> SearchResult:
    return found()


@pytest.fixture(scope="module")
def budgeted() -> SearchResult:
    return found(budget=Budget(average_bits=3))


AVERAGES = (2.1, 2.4, 2.7, 3.0, 3.3, 3.6, 3.9, 4.2, 4.5, 4.8, 5.0)


@pytest.mark.parametrize("kind", ["ranged", "budgeted"])
def test_a_higher_budget_never_gives_a_worse_plan(
    kind: str, request: pytest.FixtureRequest
) -> None:
    result: SearchResult = request.getfixturevalue(kind)
    known = {
        tuple(result.space.plan(each.choice).values()): each.objective for each in result.estimates
    }
    known |= {tuple(trial.plan.values()): trial.objective for trial in result.trials}
    plans = [result.at(Budget(average_bits=average)) for average in AVERAGES]
    objectives = [known[tuple(plan.values())] for plan in plans]
    assert objectives == sorted(objectives)
    assert len(set(objectives)) > 4
    for plan, average in zip(plans, AVERAGES, strict=True):
        assert plan.cost().average_bits <= average + 1e-9
        fitting = [t for t in result.trials if t.plan.cost().average_bits <= average]
        best = max((trial.objective for trial in fitting), default=-1e9)
        assert known[tuple(plan.values())] >= best


@pytest.mark.parametrize("kind", ["ranged", "budgeted"])
def test_a_budget_of_bytes_bounds_the_file(kind: str, request: pytest.FixtureRequest) -> None:
    result: SearchResult = request.getfixturevalue(kind)
    priced = in_bytes(result.space, result.sizes)
    low = result.sizes.rest + priced.cost(priced.cheapest)
    high = result.sizes.rest + priced.cost(priced.dearest)
    for share in (0.3, 0.6, 0.9):
        most = low + share * (high - low)
        plan = result.at(Budget(bytes=int(most)))
        assert calibrate(net(), plan, inputs()).file_bytes <= 1.02 * most


def test_confirming_measures_the_most_promising_and_returns_the_best_of_them(
    ranged: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {}
    true = type(ranged.shipping).measured

    def noting(self: Any, plan: Any) -> tuple[float, int]:
        measured[tuple(plan.values())] = true(self, plan)
        return measured[tuple(plan.values())]

    monkeypatch.setattr(type(ranged.shipping), "measured", noting)
    budget = Budget(average_bits=3)
    first = ranged.at(budget)
    assert not measured
    assert ranged.at(budget, confirm=1) == first
    measured.clear()
    confirmed = ranged.at(budget, confirm=4)
    assert len(measured) == 4
    assert tuple(first.values()) in measured
    assert max(measured, key=lambda plan: measured[plan]) == tuple(confirmed.values())


def test_what_no_known_plan_meets_is_an_error_that_says_so(budgeted: SearchResult) -> None:
    with pytest.raises(BudgetError, match="no plan within the options costs so little"):
        budgeted.at(Budget(average_bits=1.5))
    few = found(method="uniform", trials=1, budget=Budget(average_bits=3))
    with pytest.raises(BudgetError, match=r"none of \d plans of this search fits; they take"):
        few.at(Budget(average_bits=2.2))


def test_the_front_is_one_in_objective_and_bytes(ranged: SearchResult) -> None:
    space = in_bytes(ranged.space, ranged.sizes)
    points = {t.choice: (space.cost(t.choice), t.objective) for t in ranged.trials}
    front = [points[trial.choice] for trial in ranged.pareto]
    assert len(front) > 4
    assert front == sorted(front)
    for cost, objective in points.values():
        beaten = [c <= cost and o >= objective for c, o in front]
        assert any(beaten)
    assert all(o < p for (_, o), (_, p) in itertools.pairwise(front))


@pytest.mark.parametrize(("method", "refine"), [("dnq", 0.0), ("dnq", 0.2), ("random", 0.3)])
def test_without_a_budget_the_whole_range_is_covered(method: str, refine: float) -> None:
    result = found(method=method, refine=refine, trials=80)
    averages = [trial.plan.cost().average_bits for trial in result.trials]
    assert min(averages) < 2.9
    assert max(averages) > 4.1
    assert bool(result.estimates) == (method == "dnq")
    assert (result.refinement is not None) == bool(refine)
    assert result.objective >= max(result.uniform_objective, result.exact_objective)
    assert len(result.at(Budget(average_bits=3))) == 5


def test_a_trade_off_and_a_registered_method_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        found(trade_off=0.05).plan.cost().average_bits
        < found(trade_off=1e-6).plan.cost().average_bits
    )
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    register_method("dearest", _dearest)
    result = found(method="dearest")
    assert result.space.dearest in [trial.choice for trial in result.trials]


def _dearest(evaluator: Any) -> None:
    evaluator.rewards([evaluator.space.dearest])


@pytest.mark.usefixtures("brief_practice")
@pytest.mark.parametrize("budget", [Budget(average_bits=3), None])
def test_workers_and_a_kill_do_not_change_what_is_found(
    budget: Budget | None, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    whole = found(budget=budget, journal=path)
    again = found(budget=budget, workers=3)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    middle = len(lines) // 2
    path.write_text("".join(lines[:middle]) + lines[middle][:5], encoding="utf-8")
    resumed = found(budget=budget, journal=path)
    for other in (again, resumed):
        assert (other.plan, other.trials) == (whole.plan, whole.trials)
        assert other.estimates == whole.estimates


def test_bits_of_inputs_are_searched_by_the_policy() -> None:
    budget = Budget(bit_ops=10_000)
    result = found(budget=budget, activations=(4, 8), options=(2, 4), trials=80)
    space = within(result.space, budget)
    assert all(space.fits(trial.choice) for trial in result.trials)
    assert bit_operations(result.plan) <= 10_000
    assert result.plan.activations
    assert bit_operations(result.at(Budget(bit_ops=9_000))) <= 9_000


def bit_operations(plan: Plan) -> int:
    operations = plan.cost().bit_ops
    assert operations is not None
    return operations
