"""The tables and figures of docs/reliability.md are those of the committed results."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_tables_are_those_of_the_committed_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = runpy.run_path(str(BENCHMARKS / "torture.py"))
    result = json.loads(script["RESULT"].read_text(encoding="utf-8"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert script["fill"](page, "torture", script["table"](result)) == page
    assert all(row["identical"] == row["completed"] > 0 for row in result["kills"])
    assert all(row["lost"] == row["unnamed"] == 0 < row["faults"] for row in result["faults"])


def test_the_counts_are_those_of_the_committed_results() -> None:
    page = " ".join((BENCHMARKS.parent / "docs/reliability.md").read_text(encoding="utf-8").split())
    results = BENCHMARKS / "results"
    cases = json.loads((results / "fuzz.json").read_text(encoding="utf-8"))
    assert f"{cases['packed']:,} packed files and {cases['yaml']:,} recipes" in page
    mutants = json.loads((results / "mutants.json").read_text(encoding="utf-8"))
    assert f"sample of {mutants['asked']}, {mutants['tried']} have been tried" in page
    for folder, killed in mutants["killed"].items():
        assert killed == "0 of 0" or f"{killed} in `{folder}`" in page
