"""The tables of docs/reliability.md are those of the committed result."""

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
