"""The search as a whole: its plan, its journal, what it refuses."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from octavo.dnq import searching
from octavo.dnq.evaluator import Trial
from octavo.dnq.finalists import Shipping
from octavo.dnq.rivals import proposals
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.dnq.settings import METHODS
from octavo.errors import BudgetError, FormatError, PlanError, RecipeError
from octavo.inq.incremental import Incremental
from octavo.plan import Budget, Plan
from octavo.progress import Event

BUDGET = Budget(average_bits=3.2)

# The network has a layer that nothing calls.
pytestmark = pytest.mark.filterwarnings("ignore:unused. no input reaches it")


class Net(nn.Module):
    """Three layers, registered in another order than they are called in, and one that no input
    reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle, self.unused = (
            nn.Linear(5, 4),
            nn.Linear(6, 9),
            nn.Linear(9, 5),
            nn.Linear(3, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).relu()).relu())  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(3)
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 6, generator=generator), torch.randn(5, 6, generator=generator)]


def found(**changes: Any) -> SearchResult:
    settings: dict[str, Any] = {"budget": BUDGET, "trials": 40, "seed": 2}
    settings |= changes
    if settings.get("trade_off"):
        del settings["budget"]
    return search(net(), batches(), **settings)


def same(one: SearchResult, other: SearchResult) -> bool:
    """Plans, objectives and all trials in their order."""
    return (dict(one.plan), dict(one.uniform), one.trials) == (
        dict(other.plan), dict(other.uniform), other.trials
    ) and (one.objective, one.uniform_objective) == (
        other.objective, other.uniform_objective
    )  # fmt: skip


def trials_among(events: list[Event]) -> tuple[object, ...]:
    return tuple(event.detail for event in events if event.phase == "search")


def len_of(model: nn.Module) -> float:
    return float(len(list(model.parameters())))


def average_of(plan: Plan) -> float:
    """Average bits by hand; the layers have 54, 45 and 20 weights."""
    weights = {"first": 54, "middle": 45, "last": 20}
    return sum(weights[name] * int(width) for name, width in plan.items()) / 119


@pytest.fixture(autouse=True)
def _fewer_neighbours(brief_practice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evolution looks at fewer neighbours: enough for three layers."""
    monkeypatch.setattr(proposals, "CHILDREN", 32)


@pytest.fixture(autouse=True)
def _a_large_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods are run although the trials suffice to measure all plans of three layers:
    ``test_enumeration.py`` has the small spaces."""
    monkeypatch.setattr(searching, "all_choices", lambda *_: None)


class KilledError(Exception):
    pass


def killed_after(trials: int) -> Any:
    """A callback in which the process dies."""
    seen: list[Event] = []

    def progress(event: Event) -> None:
        seen.append(event)
        if len(trials_among(seen)) == trials:
            raise KilledError

    return progress


# What comes of it.


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_names_the_layers_that_inputs_reach_in_forward_order_and_is_within_the_budget(
    method: str,
) -> None:
    result = found(method=method)
    assert list(result.plan) == ["first", "middle", "last"]
    assert result.plan.weights == {"first": 54, "middle": 45, "last": 20}
    assert result.plan.macs == {"first": 54, "middle": 45, "last": 20}
    assert average_of(result.plan) <= 3.2
    assert set(result.plan.values()) <= {2, 3, 4, 5}
    best = result.finalists[0]
    assert (result.plan, result.objective) == (best.plan, best.final)
    assert best.objective in [t.objective for t in result.trials if t.plan == result.plan]


@pytest.mark.parametrize("method", METHODS)
def test_the_uniform_plan_stands_beside_the_result(method: str) -> None:
    result = found(method=method, trials=14)
    assert dict(result.uniform) == {"first": 3, "middle": 3, "last": 3}
    alone = found(method="uniform", trials=1)
    assert dict(alone.uniform) == dict(result.uniform)
    assert alone.uniform_objective == result.uniform_objective
    assert dict(alone.exact) == dict(result.exact)  # by losses measured beside the search
    assert alone.exact_objective == result.exact_objective
    assert [trial.plan for trial in alone.trials] == [alone.uniform, alone.exact]
    assert alone.objective == max(alone.uniform_objective, alone.exact_objective)


def test_the_model_is_left_as_it_was() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    search(model, batches(), budget=BUDGET, trials=20, workers=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_policy_learns_where_the_caller_has_gradients_off(off: Any) -> None:
    expected = found(method="dnq", trials=40)
    with off():
        result = found(method="dnq", trials=40)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() is (off is torch.inference_mode)
    assert [trial.choice for trial in result.trials] == [t.choice for t in expected.trials]
    assert result.objective == expected.objective


@pytest.mark.parametrize("method", METHODS)
def test_the_search_draws_nothing_from_the_global_generator(method: str) -> None:
    model = net()
    before = torch.get_rng_state()
    search(model, batches(), budget=BUDGET, trials=20, method=method)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_plan_with_any_number_of_workers(method: str) -> None:
    torch.manual_seed(0)
    one = found(method=method, trials=24)
    torch.manual_seed(1)
    assert same(found(method=method, trials=24, workers=4), one)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_scored_twice_nor_more_than_was_asked(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    monkeypatch.setattr(Shipping, "measured", lambda *_: (0.0, 0))  # the final measure apart

    def objective(model: nn.Module) -> float:
        weights = [model.get_parameter(f"{name}.weight") for name in ("first", "middle", "last")]
        scored.append(
            tuple(weight.data_ptr() for weight in weights)
        )  # there is one tensor for each layer and bits
        return -sum(len(weight.unique()) for weight in weights)

    seen: list[Event] = []
    result = found(method=method, trials=22, objective=objective, progress=seen.append)
    beside = 2  # the uniform and the exact plan
    if method in ("random", "uniform"):  # and what the exact solution needs of single layers
        beside += 3 * 4 + 1
    assert len(scored) == len(set(scored)) <= 22 + beside
    assert trials_among(seen) == result.trials
    assert len({trial.choice for trial in result.trials}) == len(result.trials)


def test_the_objective_of_ones_own_is_what_is_maximised() -> None:
    def objective(model: nn.Module) -> float:
        return -float(model.get_parameter("middle.weight").unique().numel())

    result = found(objective=objective, trials=60, method="random", budget=Budget(average_bits=5))
    assert result.objective == max(trial.objective for trial in result.trials)


def test_pins_are_kept_in_the_plan_and_the_uniform_one() -> None:
    for method in METHODS:
        result = found(method=method, pins={"last": 8}, trials=20, budget=Budget(average_bits=4))
        assert result.plan["last"] == result.uniform["last"] == 8
        assert all(trial.plan["last"] == 8 for trial in result.trials)
        assert result.plan.cost().average_bits <= 4


def test_every_layer_may_be_pinned() -> None:
    result = found(pins={"first": 2, "middle": 3, "last": 4}, trials=10)
    assert dict(result.plan) == {"first": 2, "middle": 3, "last": 4}
    assert len(result.trials) == 1


def test_a_higher_trade_off_gives_fewer_bits_and_maximises_the_reward() -> None:
    def reward(plan: Plan, objective: float, trade_off: float) -> float:
        return objective + trade_off * math.log2(32 / average_of(plan))

    bits = []
    for trade_off in (1e-6, 0.003, 1e3):
        result = found(trade_off=trade_off)
        bits.append(result.plan.cost().average_bits)
        others = [trial for trial in result.trials if trial.plan != result.uniform]
        best = max(reward(trial.plan, trial.objective, trade_off) for trial in others)
        assert reward(result.plan, result.objective, trade_off) >= best - 1e-12
        assert result.uniform.cost().average_bits <= result.plan.cost().average_bits
    assert bits[0] > bits[1] > bits[2] == 2
    assert found(trade_off=1e3, method="exact").plan.cost().average_bits == 2


# Other budgets.


def test_another_budget_picks_from_the_trials() -> None:
    result = found(method="random", trade_off=0.1, trials=50)
    for average in (2.5, 3.0, 4.2):
        plan = result.at(Budget(average_bits=average))
        fitting = [t for t in result.trials if average_of(t.plan) <= average]
        assert plan == max(fitting, key=lambda trial: trial.objective).plan
        assert isinstance(plan, Plan)
    few = found(method="uniform", trials=1)
    with pytest.raises(
        BudgetError, match=r"none of 2 plans of this search fits; they take [\d.]+ to [\d.]+ times"
    ) as error:
        few.at(Budget(average_bits=2.2))
    assert "\n" not in str(error.value)
    with pytest.raises(BudgetError, match="no plan within the options costs so little"):
        result.at(Budget(bytes=3))


def test_a_budget_that_nothing_meets_says_what_is_feasible() -> None:
    with pytest.raises(BudgetError, match=r"feasible: 2 to 5 average bits, a file of about "):
        found(budget=Budget(bytes=29))
    with pytest.raises(BudgetError, match=r"feasible: 3\.01 to 5\.5"):
        found(budget=Budget(average_bits=3), pins={"last": 8})


# The journal.


@pytest.mark.parametrize(
    ("method", "trials"),
    [
        ("dnq", 1),
        ("dnq", 3),
        ("greedy", 1),
        ("greedy", 2),
        ("tpe", 3),
        ("random", 1),
        ("random", 6),
    ],
)
def test_a_search_that_was_killed_goes_on_to_the_same_plan(
    method: str, trials: int, tmp_path: Path
) -> None:
    whole = found(method=method, journal=tmp_path / "whole", trials=34)
    assert len(whole.trials) > trials
    with pytest.raises(KilledError):
        found(method=method, journal=tmp_path / "killed", trials=34, progress=killed_after(trials))
    before = (tmp_path / "killed").read_text(encoding="utf-8")
    assert before.count("\n") < (tmp_path / "whole").read_text(encoding="utf-8").count("\n")
    seen: list[Event] = []
    again = found(method=method, journal=tmp_path / "killed", trials=34, progress=seen.append)
    assert same(again, whole)
    assert trials_among(seen) == whole.trials
    text = (tmp_path / "killed").read_text(encoding="utf-8")
    assert text.startswith(before)
    assert sorted(text.splitlines()) == sorted(
        (tmp_path / "whole").read_text(encoding="utf-8").splitlines()
    )


def test_a_journal_changes_nothing_and_answers_for_everything(tmp_path: Path) -> None:
    calls = []

    def objective(model: nn.Module) -> float:
        calls.append(1)
        return -(sum(float(weight.double().abs().sum()) for weight in model.parameters()) % 1)

    without = found(objective=objective)
    once = len(calls)
    path = tmp_path / "new folder" / "journal"
    assert same(found(objective=objective, journal=path), without)
    assert len(calls) == 2 * once
    assert same(found(objective=objective, journal=path), without)
    assert same(found(objective=objective, journal=str(path), workers=3), without)
    finals = len(without.finalists)  # these are solved and measured anew
    assert len(calls) == 2 * once + 2 * finals
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 1 + once - finals
    assert {(tuple(line["bits"]), line["score"]) for line in lines[1:]} >= {
        (tuple(map(int, t.plan.values())), t.objective) for t in without.trials
    }


@pytest.mark.parametrize("cut", [1, 5, 30, "all of the trials", "half of the first line"])
def test_a_last_line_that_was_cut_off_is_dropped(cut: int | str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = found(method="greedy", journal=path, trials=18)
    text = path.read_text(encoding="utf-8")
    first = text.index("\n")
    at = len(text) - cut if isinstance(cut, int) else first + 1 if "trials" in cut else first // 2
    path.write_text(text[:at], encoding="utf-8")
    assert same(found(method="greedy", journal=path, trials=18), whole)
    assert sorted(path.read_text(encoding="utf-8").splitlines()) == sorted(text.splitlines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": (2, 3)}, "options"),
        ({"pins": {"last": 3}}, "options"),
        ({"objective": lambda _: 1.0}, "own_score"),
    ],
)
def test_the_journal_of_another_search_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    found(journal=path, trials=14, method="random")
    before = path.read_bytes()
    with pytest.raises(RecipeError, match=message) as error:
        found(journal=path, trials=14, method="random", **changes)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_the_journal_of_other_layers_or_batches_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    found(journal=path, trials=14, method="random")
    with pytest.raises(RecipeError, match="layers"):
        search(nn.Sequential(nn.Linear(6, 4)), batches(), budget=BUDGET, journal=path)
    with pytest.raises(RecipeError, match="inputs"):  # the same samples in other batches
        search(net(), [torch.cat(batches())], budget=BUDGET, journal=path)


def test_a_journal_that_is_damaged_is_refused_by_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    found(journal=path, trials=14, method="random")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3] = '{"bits": [2, 2, 2]}'
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(FormatError, match=r"journal, line 4: expected a trial"):
        found(journal=path, trials=14, method="random")
    assert path.read_bytes() == before


# What is refused.


def test_a_budget_and_a_trade_off_exclude_each_other() -> None:
    with pytest.raises(BudgetError, match="expected one of budget and trade_off, got both"):
        search(net(), batches(), budget=BUDGET, trade_off=0.1)


def test_a_budget_that_is_a_bare_number_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"budget: expected one such as Budget\(.*got 3$"):
        search(net(), batches(), budget=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("trade_off", [0, -1.0, math.nan, math.inf])
def test_a_trade_off_that_is_not_positive_is_refused(trade_off: float) -> None:
    with pytest.raises(BudgetError, match="trade_off: expected a positive number"):
        search(net(), batches(), trade_off=trade_off)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gready"}, "method: expected one of dnq, .*'gready'.*nearest is 'greedy'"),
        ({"method": "bayes"}, "method: expected one of dnq, .*, got 'bayes'$"),
        ({"pins": {"lats": 3}}, "'lats' matches no layer that is searched .*nearest is 'last'"),
        ({"pins": {"unused": 3}}, "'unused' matches no layer that is searched"),
        ({"pins": {"last": 9}}, "got 9"),
        ({"options": ()}, "options"),
        ({"options": (1, 2)}, "options.*got 1"),
        ({"options": "fp4"}, r"options: expected several widths such as \(2, 3, 4\), got 'fp4'$"),
        ({"options": 3}, "options: expected several widths.*got 3$"),
        ({"trials": 0}, "at least 1 trial"),
        ({"trials": 20.5}, "at least 1 trial and 1 worker, got 20.5 and 1"),
        ({"workers": 0}, "at least 1 trial and 1 worker"),
        ({"trials": 13}, "trials: expected at least 14.*got 13"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        found(**changes)
    assert "\n" not in str(error.value)


def test_a_model_that_is_masked_or_in_a_run_is_refused_before_anything_is_measured() -> None:
    masked = net()
    prune.l1_unstructured(masked.last, "weight", 0.5)
    in_a_run = net()
    Incremental(in_a_run, {"last": 3})
    for model, said in ((masked, "masks it"), (in_a_run, "unfinished Incremental")):
        seen: list[Event] = []
        with pytest.raises(PlanError, match=said):
            search(model, batches(), budget=BUDGET, progress=seen.append)
        assert not seen


def test_inputs_and_layers_are_wanted() -> None:
    with pytest.raises(PlanError, match="at least one batch"):
        search(net(), [], budget=BUDGET)
    with pytest.raises(PlanError, match=r"ReLU.*layers that can be quantized"):
        search(nn.ReLU(), [torch.ones(2, 3)], budget=BUDGET)


def test_a_model_that_no_file_can_hold_is_refused_before_the_inputs_are_read() -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

    model = net()
    model.unused = Stateful(3, 3)
    inputs = (pytest.fail("an input was read") for _ in range(1))
    with pytest.raises(
        PlanError, match=r"^unused\._extra_state: expected a tensor of a plain type"
    ):
        search(model, inputs, budget=BUDGET)


def test_inputs_may_come_from_a_generator() -> None:
    assert same(search(net(), iter(batches()), budget=BUDGET, trials=40, seed=2), found())


# The result, and old spellings.


def test_a_result_says_what_it_is_in_one_line() -> None:
    result = found(method="exact")
    text = repr(result)
    assert "\n" not in text
    assert text.startswith("SearchResult(3 layers, ")
    assert f"objective {result.objective:.5g}; uniform: 3 average bits" in text
    assert f"; exact: objective {result.exact_objective:.5g}; no inputs held out; " in text
    assert text.endswith(f"{len(result.trials)} trials)")
    assert result.held_out == 0


class TimeFirst(nn.Module):
    """A recurrent network that takes (steps, sequences, features), as torch's own do by default."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNN(3, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][-1])  # type: ignore[no-any-return]


def test_steps_of_time_are_not_dealt_out_as_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(20, 2, 3, generator=generator) for _ in range(8)]
    result = search(TimeFirst(), sequences, budget=BUDGET, options=(2, 4), trials=16)
    assert result.held_out == 2  # of eight batches, and not 40 of 160 steps


def test_a_result_says_how_many_inputs_decided() -> None:
    inputs = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    result = search(net(), list(inputs.split(30)), budget=BUDGET, method="exact")
    assert result.held_out == 20
    assert "; 20 inputs held out; " in repr(result)
    own = search(net(), list(inputs.split(30)), budget=BUDGET, method="exact", objective=len_of)
    assert own.held_out == 0


def test_old_spellings_warn_and_work() -> None:
    def objective(candidate: nn.Module) -> float:
        return -sum(float(weight.double().abs().sum()) for weight in candidate.parameters())

    seen: list[Trial | None] = []
    with pytest.warns(DeprecationWarning, match=r"^search\(") as caught:
        old = found(method="random", trials=5, score=objective, observe=seen.append)
    deprecated = [one for one in caught if issubclass(one.category, DeprecationWarning)]
    messages = sorted(str(warning.message).partition(":")[2] for warning in deprecated)
    assert messages == [" use search(objective=)", " use search(progress=)"]
    assert tuple(filter(None, seen)) == old.trials
    assert same(old, found(method="random", trials=5, objective=objective))
    assert old.objective != old.uniform_objective
    with pytest.warns(DeprecationWarning, match=r"use SearchResult\.objective"):
        assert old.score == old.objective
    with pytest.warns(DeprecationWarning, match=r"use SearchResult\.uniform_objective"):
        assert old.uniform_score == old.uniform_objective
