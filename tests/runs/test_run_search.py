"""Runs that search for their bits."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import (
    CLASSES,
    INPUTS,
    Cut,
    Tiny,
    Watcher,
    files,
    recipe,
    searching,
    timeless,
)

from octavo.dnq import methods
from octavo.dnq.evaluator import Trial
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.errors import BudgetError, PlanError, RecipeError
from octavo.plan import Budget, Plan
from octavo.progress import Event
from octavo.runs.run import run
from octavo.runs.search_figures import search_figures
from octavo.storage.packed import Packed

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.usefixtures("brief_practice")
@pytest.mark.parametrize("method", ["dnq", "random"])
def test_a_run_searches_for_its_bits(method: str, folder: Path) -> None:
    watcher, task = Watcher(), Tiny()
    result = run(searching(method, seed=3), folder, watcher)
    names = (
        "details.json",
        "packed.safetensors",
        "plan.yaml",
        "quantized.pt",
        "recipe.json",
        "result.json",
        "search.json",
        "search.jsonl",
    )
    assert set(files(folder.parent)) == {f"one/{name}" for name in names}
    plan = Plan.load(folder / "plan.yaml")
    assert plan == Packed.load(folder / "packed.safetensors").plan
    assert plan.cost().average_bits == pytest.approx(result["nominal_bits"])
    assert plan.cost().average_bits <= 3
    assert watcher.searches == [12]
    assert watcher.notes[1].startswith("search: ")
    settings: dict[str, Any] = {
        "budget": Budget(average_bits=3),
        "method": method,
        "trials": 12,
        "seed": 3,
    }
    found = search(task.model(), task.calibration(), **settings)
    assert tuple(watcher.trials) == found.trials
    assert plan == found.plan
    assert result["search"] == search_figures(found, method)
    assert result["search"]["plan"] == dict(plan)
    assert result["search"]["method"] == method
    assert result["search"]["score"] >= result["search"]["uniform_score"]
    assert json.loads((folder / "result.json").read_text()) == result
    again = Watcher()
    assert run(searching(method, seed=3), folder, again) == result
    assert (again.searches, again.trials) == ([], [])


def test_the_network_that_is_searched_is_the_one_that_is_quantized_after_its_warm_up(
    folder: Path,
) -> None:
    result = run(searching("random", seed=3, warmup=2), folder)
    (warmed,) = folder.parent.glob("warmup-*/warmup.pt")
    model, task = Tiny().model(), Tiny()
    model.load_state_dict(torch.load(warmed, weights_only=True)["state"])
    found = search(
        model, task.calibration(), budget=Budget(average_bits=3), method="random", trials=12, seed=3
    )
    assert (result["search"]["score"], result["search"]["uniform_score"]) == (
        found.objective,
        found.uniform_objective,
    )
    assert Packed.load(folder / "packed.safetensors").plan == found.plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": {"average_bits": 1}},
        {"budget": {"average_bits": 3}, "pins": {"nope": 3}},
        {"budget": {"average_bits": 3}, "trials": 3},
    ],
)
def test_a_search_that_does_not_fit_is_refused_before_scoring_and_the_warm_up(
    wrong: dict[str, Any], folder: Path
) -> None:
    Tiny.losses = 0
    watcher = Watcher()
    with pytest.raises((BudgetError, PlanError)):
        run(searching(search=wrong, warmup=2), folder, watcher)
    assert Tiny.losses == 0
    assert watcher.notes == []
    assert files(folder.parent) == {}


@pytest.mark.parametrize("method", ["ptq", "inq"])
def test_a_search_for_the_bits_of_inputs_too(method: str, folder: Path) -> None:
    macs = {"0": INPUTS * 6, "3": 6 * CLASSES}
    wanted: dict[str, Any] = {
        "budget": {"bit_ops": 16 * sum(macs.values())},
        "method": "exact",
        "trials": 20,
        "activations": [4, 8],
    }
    settings, task = searching(search=wanted, method=method, control=False), Tiny()
    result = run(settings, folder)
    found = search(
        task.model(),
        task.calibration(),
        budget=Budget(bit_ops=16 * sum(macs.values())),
        method="exact",
        trials=20,
        activations=(4, 8),
    )
    packed = Packed.load(folder / "packed.safetensors")
    assert packed.plan == found.plan == Plan.load(folder / "plan.yaml")
    assert (
        result["activation_bits"]
        == found.plan.activations
        == {n: form.bits for n, form in packed.activations.items()}
    )
    assert sum(found.plan[n].bits * found.plan.activations[n] * macs[n] for n in macs) <= 16 * sum(
        macs.values()
    )
    fresh = task.model()
    packed.apply(fresh)
    assert result["score"] == task.score(fresh)


def test_every_setting_reaches_the_search(folder: Path) -> None:
    wanted: dict[str, Any] = {
        "budget": {"average_bits": 4.5},
        "method": "random",
        "trials": 5,
        "options": [2, 3, 6],
        "pins": {"3": 6},
    }
    result = run(searching(search=wanted, seed=3, method="ptq"), folder)
    assert result["search"]["plan"]["3"] == 6
    assert result["search"]["plan"]["0"] in (2, 3)
    head, *lines = map(json.loads, (folder / "search.jsonl").read_text().splitlines())
    assert head["settings"]["options"] == [[2, 3, 6], [6]]
    assert all(line["bits"][1] == 6 for line in lines)
    assert [layer["bits"] for layer in result["layers"]] == list(result["search"]["plan"].values())
    few = {"budget": {"average_bits": 3}, "trials": 9}
    with pytest.raises(PlanError, match=r"^trials: expected at least 10, .* got 9$"):
        run(searching(search=few), folder.with_name("few"))


def test_the_new_settings_reach_the_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objective is the task's, refinement has its share, and finalists are retrained alike."""
    seen = dict[str, Any]()

    def noted(*args: Any, **options: Any) -> SearchResult:
        seen.update(options)
        return search(*args, **options)

    monkeypatch.setattr("octavo.runs.quantize.search", noted)
    wanted: dict[str, Any] = {
        "budget": {"average_bits": 6},
        "options": [2, 3, 4, 5, 6, 7, 8],
        "method": "random",
    }
    wanted |= {"trials": 20, "refine": 0.2, "objective": "task", "retrain_steps": 3}
    watcher = Watcher()
    result = run(searching(search=wanted), folder, watcher)["search"]
    assert (seen["refine"], seen["objective"].__name__) == (0.2, "score")
    retrained = [event for event in watcher.steps if event.message == "finalist"]
    times = 3 * len(result["finalists"])  # after each of four portions but the last
    assert [event.done for event in retrained] == [1, 2, 3] * times
    assert {event.total for event in retrained} == {3}
    assert result["refinement"]["added"] >= 0
    assert result["refinement"]["after_trial_score"] == max(
        trial.objective for trial in watcher.trials[: 20 - 15]
    )
    task = Tiny()
    whole: Any = task.model()
    one, two = copy.deepcopy(whole), copy.deepcopy(whole)
    for network in (one, two):
        seen["retrain_steps"](network)
    assert torch.equal(one[0].weight, two[0].weight)  # the same batches
    assert not torch.equal(one[0].weight, whole[0].weight)
    assert result["score"] >= max(result["uniform_score"], result["exact_score"])


def test_a_method_of_a_tasks_file_can_be_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "mine.py"
    file.write_text(
        "from octavo.dnq.methods import register_method\n"
        "from tests.runs.tiny import Tiny\n"
        "def coarsest(evaluator):\n"
        "    evaluator.rewards([evaluator.space.cheapest])\n"
        "register_method('coarsest', coarsest)\n"
    )
    wanted: dict[str, Any] = {"budget": {"average_bits": 3}, "method": "coarsest", "trials": 3}
    mine = searching(search=wanted, task=f"{file}:Tiny", teacher={"shift": 0.5})
    result = run(mine, folder)["search"]
    assert (result["method"], result["enumerated"]) == ("coarsest", False)
    assert {"0": 2, "3": 2} in [finalist["plan"] for finalist in result["finalists"]]


def test_an_unknown_method_is_refused_before_anything_is_computed(folder: Path) -> None:
    with pytest.raises(PlanError, match=r"method: expected one of .*'dqn' \(the nearest is 'dnq'"):
        run(searching("dqn", warmup=1), folder)
    assert files(folder.parent) == {}
    assert Tiny.losses == 0


def test_a_run_with_a_search_that_was_cut_off_in_retraining_ends_as_if_it_had_not_been(
    folder: Path,
) -> None:
    whole = run(searching(), folder.with_name("whole"))
    Tiny.losses, Tiny.fail_at = 0, 8
    with pytest.raises(Cut):
        run(searching(), folder)
    Tiny.fail_at, before = None, files(folder)
    torch.manual_seed(99)
    assert timeless(run(searching(), folder)) == timeless(whole)
    assert (
        files(folder)["packed.safetensors"]
        == files(folder.with_name("whole"))["packed.safetensors"]
    )
    assert files(folder)["search.jsonl"] == before["search.jsonl"]  # nothing was scored again


def test_a_run_that_was_cut_off_in_its_search_goes_on_from_the_journal(folder: Path) -> None:
    def cut(event: Event) -> None:
        if isinstance(event.detail, Trial):
            raise Cut

    wanted: dict[str, Any] = {"budget": {"average_bits": 6}, "options": [2, 3, 4, 5, 6, 7, 8]}
    wanted |= {"method": "evolution", "trials": 24, "refine": 0.25}
    whole = run(searching(search=wanted), folder.with_name("whole"))
    with pytest.raises(Cut):
        run(searching(search=wanted), folder, cut)
    assert set(files(folder)) == {"search.jsonl"}
    begun = (folder / "search.jsonl").read_text()
    # The settings, full precision, each layer alone at seven options, a plan.
    assert len(begun.splitlines()) == 1 + 1 + 14 + 1
    assert timeless(run(searching(search=wanted), folder)) == timeless(whole)
    assert (folder / "search.jsonl").read_text().startswith(begun)
    for name in ("search.jsonl", "plan.yaml", "packed.safetensors"):
        assert files(folder)[name] == files(folder.with_name("whole"))[name]


def test_a_budget_that_cannot_be_met_leaves_nothing_and_can_be_mended(folder: Path) -> None:
    with pytest.raises(BudgetError):
        run(searching(budget=1.5), folder)
    assert not folder.exists()
    assert run(searching(), folder)["score"]


def test_another_search_is_another_run(folder: Path) -> None:
    run(searching(), folder)
    before = files(folder)
    keys = r"(search\.method|search\.budget\.average_bits|bits)"
    for other in (searching("exact"), searching(budget=2.5), recipe(control=False)):
        with pytest.raises(
            RecipeError,
            match=rf"^{folder} holds a run with {keys} .*: choose another --folder$",
        ):
            run(other, folder)
    assert files(folder) == before


def test_a_search_shares_the_control_of_given_bits(folder: Path) -> None:
    given, watcher = run(recipe(), folder), Watcher()
    found = run(searching(control=True), folder.with_name("two"), watcher)
    assert found["control_score"] == given["control_score"]
    assert watcher.stages == [
        "quantized, stage 1/3",
        "quantized, stage 2/3",
        "quantized, stage 3/3",
    ]
