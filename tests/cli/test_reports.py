"""report and compare: what they write, what they print, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.report import drawing


@pytest.fixture
def two_runs(octavo: Callable[..., Any]) -> None:
    for bits in (3, 5):
        words = ["--set", f"bits={bits}", "--set", "control=false", "--folder", f"runs/b{bits}"]
        assert octavo("run", "r.yaml", *words).status == 0


@pytest.mark.usefixtures("two_runs")
def test_a_run_ends_with_its_page_and_report_writes_it_again(octavo: Callable[..., Any]) -> None:
    page = Path("runs/b3/report.html").read_text()
    assert "<h1>b3</h1>" in page
    said = octavo("report", "runs/b3", "-o", "here.html")
    assert (said.status, said.out) == (0, "written: here.html\n")
    assert Path("here.html").read_text() == page
    assert octavo("report", "runs/b3").out == "written: runs/b3/report.html\n"


@pytest.mark.usefixtures("two_runs")
def test_report_draws_figures_for_a_paper(octavo: Callable[..., Any]) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    said = octavo("report", "runs/b3", "--figures", "figures")
    assert said.status == 0
    assert "written: figures/weights.svg" in said.out
    assert Path("figures/layers-bits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("two_runs")
def test_compare_writes_a_page_and_prints_a_table(octavo: Callable[..., Any]) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    said = octavo("compare", "runs/b3", "runs/b5")
    assert said.status == 0
    assert "│ b3  │ 3 bits, INQ │" in said.out
    assert said.out.endswith("written: comparison.html\n")
    assert "2 runs" in Path("comparison.html").read_text()


@pytest.mark.usefixtures("two_runs")
def test_compare_as_json_needs_no_extra(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "LIBRARIES", ("nobody_has_it",))
    said = octavo("compare", "runs/b3", "runs/b5", "--json")
    rows = json.loads(said.out)
    assert [row["run"] for row in rows] == ["b3", "b5"]
    assert all({"score", "file_bytes", "ratio", "method"} <= set(row) for row in rows)


@pytest.mark.usefixtures("two_runs")
def test_without_the_extra_figures_are_refused_and_the_page_is_not(
    octavo: Callable[..., Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "LIBRARIES", ("nobody_has_it",))
    extra = "needs nobody_has_it, which is not installed: install octavo with its extra report"
    assert refused("report", "runs/b3", "--figures", "f") == f"octavo report --figures {extra}"
    assert octavo("report", "runs/b3").status == 0


def test_a_folder_without_a_result_is_refused(refused: Callable[..., str]) -> None:
    said = refused("report", "runs/none")
    assert "no such file; expected the folder of a finished run" in said
    assert refused("compare", "runs/none") == said
