"""The figures of a search: everything that a script wants, as JSON."""

import json
from dataclasses import replace

import pytest
from tests.runs.tiny import Tiny

from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.plan import Budget
from octavo.runs.search_figures import estimated_bytes, front_figures, search_figures


@pytest.fixture(scope="module")
def result() -> SearchResult:
    task = Tiny()
    return search(
        task.model(),
        task.calibration(),
        budget=Budget(average_bits=6),
        refine=0.2,
        options=(2, 3, 4, 5, 6, 7, 8),
        trials=24,
        method="random",
    )


def test_the_figures_say_what_each_plan_had(result: SearchResult) -> None:
    figures = search_figures(result, "random")
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["method"], figures["trials"]) == ("random", len(result.trials))
    assert figures["held_out"] == result.held_out
    assert figures["enumerated"] is False
    for name in ("uniform", "exact"):
        assert figures[name] == dict(getattr(result, name))
        assert figures[f"{name}_score"] == getattr(result, f"{name}_objective")
    assert (figures["plan"], figures["score"]) == (dict(result.plan), result.objective)
    best = figures["finalists"][0]
    assert (best["plan"], best["score"]) == (figures["plan"], figures["score"])
    assert best["trial_score"] == result.finalists[0].objective


def test_what_the_method_had_and_what_refinement_added(result: SearchResult) -> None:
    assert result.refinement is not None
    shown = search_figures(result, "random")["refinement"]
    alone = result.trials[: 24 - 5 - 15]  # refinement has 5 of 24, single layers have 15
    best = max(alone, key=lambda trial: trial.objective)
    assert (shown["before"], shown["before_trial_score"]) == (dict(best.plan), best.objective)
    assert shown["added"] == shown["after_trial_score"] - shown["before_trial_score"] >= 0
    assert "refinement" not in search_figures(replace(result, refinement=None), "random")


def test_the_front_has_sizes_near_those_of_files(result: SearchResult) -> None:
    front = front_figures(result)
    assert [row["plan"] for row in front] == [dict(trial.plan) for trial in result.pareto]
    finalist = result.finalists[0]
    trial = next(each for each in result.trials if each.choice == finalist.choice)
    assert estimated_bytes(result, trial) == pytest.approx(
        finalist.file_bytes, rel=0.15
    )  # a tiny file
