"""The tables of a search, cell by cell."""

from dataclasses import replace

import pytest
from tests.report.test_tables import cells
from tests.runs.tiny import Tiny

from octavo.dnq.refinement import Refinement
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.plan import Budget
from octavo.report.search_tables import (
    finalists_table,
    front_table,
    plan_table,
    refinement_line,
)


@pytest.fixture(scope="module")
def result() -> SearchResult:
    task = Tiny()
    settings = {"options": (2, 3, 4, 5, 6, 7, 8), "trials": 24, "method": "random"}
    return search(
        task.model(),
        task.calibration(),
        budget=Budget(average_bits=6),
        refine=0.2,
        **settings,  # type: ignore[arg-type]
    )


def test_the_plan_stands_beside_the_uniform_and_the_exact_one(result: SearchResult) -> None:
    rows = cells(plan_table(result))
    assert rows[0] == ["layer", "weights", "bits", "uniform plan", "exact plan"]
    plans = (result.plan, result.uniform, result.exact)
    assert rows[1] == ["0", "30", *(str(plan["0"]) for plan in plans)]
    assert rows[2] == ["3", "18", *(str(plan["3"]) for plan in plans)]
    assert rows[3] == ["average bits", "", *(f"{p.cost().average_bits:.3f}" for p in plans)]
    assert rows[4] == ["nominal bytes", "", *(str(plan.cost().bytes) for plan in plans)]
    assert len(rows) == 5


def test_the_finalists_have_their_names_and_both_measures(result: SearchResult) -> None:
    head, *rows = cells(finalists_table(result, "divergence"))
    assert head == ["", "average bits", "bytes of the file", "trial", "final objective"]
    assert len(rows) == len(result.finalists)
    for row, finalist in zip(rows, result.finalists, strict=True):
        assert row[1:] == [
            f"{finalist.plan.cost().average_bits:.3f}",
            f"{finalist.file_bytes:,}",
            f"{finalist.objective:.5g}",
            f"{finalist.final:.5g}",
        ]
        assert ("uniform" in row[0]) == (finalist.plan == result.uniform)
        assert ("exact" in row[0]) == (finalist.plan == result.exact)
    assert rows[0][0].startswith("the plan")
    assert "the method alone" in " ".join(row[0] for row in rows)


NEARER = "Objective: minus the KL divergence from full precision; nearer 0 is better."


def test_the_caption_says_what_was_set_aside_and_if_all_plans_were_measured(
    result: SearchResult,
) -> None:
    def caption(changed: SearchResult) -> str:
        return str(finalists_table(changed, "divergence").caption)

    count = len(result.trials)
    assert caption(replace(result, held_out=0)) == (
        f"{NEARER} {count} plans were measured. "
        "No inputs were set aside for the final objectives: there were too few, "
        "or the objective reads data of its own"
    )
    assert caption(replace(result, held_out=16, enumerated=True)) == (
        f"{NEARER} All {count} plans within the limit were measured. "
        "Final objectives: on 16 inputs that nothing else used"
    )


def test_the_front_rises_in_size_and_in_objective(result: SearchResult) -> None:
    head, *rows = cells(front_table(result, "task"))
    assert head == ["average bits", "bytes of the file", "objective"]
    assert len(rows) == len(result.pareto)
    sizes = [int(row[1].replace(",", "")) for row in rows]
    objectives = [float(row[2]) for row in rows]
    assert sizes == sorted(sizes)
    assert objectives == sorted(objectives)


def test_refinement_is_told_apart(result: SearchResult) -> None:
    before = replace(result.trials[0], objective=-0.25)
    after = replace(result.trials[0], objective=-0.125)
    line = refinement_line(Refinement(before, after))
    assert line == "best trial of the method alone: -0.25; after refinement: -0.125"
