"""The final choice: by networks as they ship, on inputs that none of them saw."""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.activations.quantization import quantize_activations
from octavo.dnq import methods, searching
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.finalists import FINALISTS, file_limit
from octavo.dnq.methods import register_method
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.dnq.splitting import split
from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.network.divergence import Divergence
from octavo.network.forward import observing
from octavo.plan import Budget, Plan
from octavo.ptq.calibration import calibrate

# Networks that were never trained lose much at 2 bits.
pytestmark = pytest.mark.filterwarnings("ignore:.*the quantized network is far from full precision")

BUDGET = Budget(average_bits=3.2)


def net() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, 6, generator=generator) for _ in range(4)]


@pytest.fixture(autouse=True)
def _a_large_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """No enumeration; methods that a test registers are forgotten."""
    monkeypatch.setattr(searching, "all_choices", lambda *_: None)
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))


def found(**changes: Any) -> SearchResult:
    settings: dict[str, Any] = {"budget": BUDGET, "trials": 30, "method": "random"} | changes
    return search(net(), batches(), **settings)


def final_by_hand(plan: Plan, model: nn.Module) -> float:
    """The divergence on the confirming inputs of the network solved from the others."""
    parts = split(batches())
    solved = copy.deepcopy(model)
    if plan.activations:
        quantize_activations(solved, parts.solving, plan.activations)
    packed = calibrate(solved, plan, parts.solving)
    network = copy.deepcopy(model)
    packed.apply(network)
    with observing(network):
        return Divergence(model, parts.confirming).of(network)


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "exact"}, {"budget": Budget(bit_ops=6000), "activations": (4, 8)}],
)
def test_the_final_measure_is_that_of_the_network_as_it_ships(changes: dict[str, Any]) -> None:
    result = found(**changes)
    assert len(result.finalists) <= FINALISTS + 2
    for finalist in result.finalists:
        assert finalist.final == pytest.approx(final_by_hand(finalist.plan, net()), rel=1e-6)
        trials = [t.objective for t in result.trials if t.choice == finalist.choice]
        assert trials == [finalist.objective]
    finals = [finalist.final for finalist in result.finalists]
    assert finals == sorted(finals, reverse=True)
    assert (result.plan, result.objective) == (result.finalists[0].plan, finals[0])
    by_plan = {str(finalist.plan): finalist.final for finalist in result.finalists}
    assert by_plan[str(result.uniform)] == result.uniform_objective
    assert by_plan[str(result.exact)] == result.exact_objective
    assert len(by_plan) == len(finals)  # none is solved twice


def test_the_best_trials_within_the_budget_are_finalists() -> None:
    result = found()
    best = sorted(result.trials, key=lambda trial: -trial.objective)[:FINALISTS]
    assert {trial.choice for trial in best} <= {each.choice for each in result.finalists}


def worst(evaluator: Evaluator) -> None:
    """Measure the cheapest plan alone, which is the worst."""
    evaluator.rewards([evaluator.space.cheapest])


def too_dear(evaluator: Evaluator) -> None:
    """Measure plans of which most are above the budget."""
    layers = len(evaluator.space.names)
    evaluator.rewards([evaluator.space.dearest, *itertools.product((2, 3), repeat=layers)])


@pytest.mark.parametrize("method", [worst, too_dear])
@pytest.mark.parametrize(
    "limit",
    [
        {"budget": BUDGET},
        {"budget": Budget(bytes=1150)},
        {"budget": None, "trade_off": 0.05},
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_the_result_is_never_worse_than_uniform_and_exact(
    method: Any, limit: dict[str, Any], own: bool
) -> None:
    register_method("poor", method)
    objective = len_of_levels if own else None
    result = found(method="poor", objective=objective, **limit)
    rewards = {str(finalist.plan): finalist.reward for finalist in result.finalists}
    assert rewards[str(result.plan)] >= rewards[str(result.uniform)]
    assert rewards[str(result.plan)] >= rewards[str(result.exact)]
    if "trade_off" not in limit:
        assert result.objective >= max(result.uniform_objective, result.exact_objective)
        assert all(result.space.fits(f.choice) for f in result.finalists) or limit["budget"].of_file


def len_of_levels(model: nn.Module) -> float:
    """More levels are better."""
    return float(sum(len(weight.unique()) for weight in model.parameters() if weight.dim() > 1))


def test_an_objective_of_the_users_own_decides_on_the_network_that_ships() -> None:
    result = found(objective=len_of_levels)
    assert result.held_out == 0
    for finalist in result.finalists:
        network = net()
        packed = calibrate(network, finalist.plan, batches())
        packed.apply(network)
        assert finalist.final == len_of_levels(network)
        assert finalist.file_bytes == packed.file_bytes


@pytest.mark.parametrize("value", [None, math.nan, "0.5"])
def test_an_objective_that_is_no_number_is_refused_with_the_plan(value: Any) -> None:
    said = r"^objective: expected a finite number, got .* for the plan with 0 \w+, 2 \w+, 4 \w+$"
    with pytest.raises(PlanError, match=said):
        found(objective=lambda _: value)

    trial_weights: set[int] = set()

    def only_of_trials(network: nn.Module) -> Any:
        trial = not network.get_parameter("0.weight").requires_grad
        trial_weights.add(trial)
        return 1.0 if trial else value

    with pytest.raises(PlanError, match=said):
        found(objective=only_of_trials)
    assert trial_weights == {True, False}


def nudge(network: nn.Module) -> None:
    """Stands for training: it moves every free parameter."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02)


def test_finalists_are_compared_after_so_many_steps_of_retraining() -> None:
    seen: list[nn.Module] = []

    def retrain_steps(network: nn.Module) -> None:
        seen.append(network)
        nudge(network)

    model = net()
    before = copy.deepcopy(model.state_dict())
    result = search(
        model, batches(), budget=BUDGET, trials=30, method="random", retrain_steps=retrain_steps
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(seen) == 3 * len(result.finalists)  # four portions, and none after the last
    parts = split(batches())
    for finalist in result.finalists:
        network = net()
        calibrate(network, finalist.plan, parts.solving).apply(network)
        incremental = Incremental(network, finalist.plan)
        for stage in incremental:
            if not stage.last:
                nudge(network)
        incremental.finish()
        with observing(network):
            final = Divergence(net(), parts.confirming).of(network)
        assert finalist.final == pytest.approx(final, rel=1e-6)
    plain = found()
    assert [f.final for f in plain.finalists] != [f.final for f in result.finalists]


def test_the_same_whatever_the_number_of_workers() -> None:
    one, three = found(), found(workers=3)
    assert one.finalists == three.finalists
    assert (one.plan, one.exact, one.uniform) == (three.plan, three.exact, three.uniform)


def test_the_candidates_scores_and_final_measures_have_inputs_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Confirming inputs change final measures alone."""
    result = found()
    changed: list[Sequence[Any]] = []

    def split_otherwise(inputs: Sequence[Any], **options: Any) -> Any:
        parts = split(inputs, **options)
        confirming: list[Any] = list(parts.confirming)
        changed.append(confirming)
        return replace(parts, confirming=tuple(2 * x for x in confirming))

    monkeypatch.setattr(searching, "split", split_otherwise)
    other = found()
    assert changed
    assert other.trials == result.trials
    assert other.finalists[0].final != result.finalists[0].final


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(bytes=900), 900),
        (Budget(ratio=8), 1250),
        (Budget(average_bits=3), None),
        (Budget(bit_ops=7), None),
        (None, None),
    ],
)
def test_the_limit_of_the_file(budget: Budget | None, limit: int | None) -> None:
    assert file_limit(budget, 10_000) == limit
