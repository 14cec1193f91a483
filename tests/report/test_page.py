"""The pages: whole without the charts, safe from names, and asking nothing of the network."""

import re
import shutil
from pathlib import Path

import pytest

from octavo.errors import OctavoError
from octavo.report import drawing
from octavo.report.page import comparison_page, report_page, write_page
from octavo.report.record import RunRecord


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "LIBRARIES", ("a_library_that_nobody_has",))


@pytest.mark.usefixtures("no_charts")
def test_without_the_extra_the_page_has_its_tables_and_says_what_to_install(
    searched: RunRecord,
) -> None:
    page = report_page(searched)
    assert "install octavo with its extra <code>report</code>, then" in page
    assert "<figure" not in page
    assert len(page) < 60_000
    for heading in ("What went in", "What came out", "Table of layers", "Recipe, versions"):
        assert heading in page


@pytest.mark.usefixtures("no_charts")
def test_a_comparison_without_the_extra_is_refused_with_its_name(searched: RunRecord) -> None:
    with pytest.raises(OctavoError, match=r"octavo compare needs a_library.*its extra report"):
        comparison_page([searched])


@pytest.mark.usefixtures("no_charts")
def test_the_first_screen_has_the_figures_of_the_result(searched: RunRecord) -> None:
    page = report_page(searched)
    first = page[: page.index("<nav")]
    result = searched.result
    for figure in (
        f"{result['float_bytes']:,}",
        f"{result['file_bytes']:,}",
        f"{result['float_score']:.3f}",
        f"{result['score']:.3f}",
        f"{result['control_score']:.3f}",
        f"{result['ratio']:.1f}",
    ):
        assert f">{figure}" in first.replace("> ", ">")


@pytest.mark.usefixtures("no_charts")
def test_names_cannot_break_the_page(plain_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_run, tmp_path / "<script>x")
    page = report_page(RunRecord.load(folder))
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


@pytest.mark.usefixtures("no_charts")
def test_what_stays_in_float_is_listed_with_its_reason(searched: RunRecord) -> None:
    page = report_page(searched)
    for skip in searched.details["skipped"]:
        assert skip["reason"] in page


def test_the_page_of_a_committed_result_of_an_older_version_is_whole() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    for name in ("resnet20-dnq-3.0", "resnet20-order-far", "resnet20-w4a4"):
        page = report_page(RunRecord.load(results / f"{name}.json"))
        assert page.rstrip().endswith("</html>")


def test_the_pages_ask_nothing_of_the_network(searched: RunRecord) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    for page in (report_page(searched), comparison_page([searched])):
        assert "default-src 'none'" in page  # the browser itself refuses every request
        markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
        assert not re.search(r"""(src|href)=["'](?!#|data:)""", markup)
        assert "url(" not in markup
        assert "@import" not in markup


def test_the_sizes_are_within_their_limits(searched: RunRecord, large_run: Path) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    assert len(report_page(searched).encode()) < 1_000_000
    assert len(report_page(RunRecord.load(large_run)).encode()) < 3_000_000


def test_the_same_run_gives_the_same_page(searched: RunRecord, tmp_path: Path) -> None:
    write_page(report_page(searched), tmp_path / "a.html")
    write_page(report_page(searched), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_comparison_shows_how_the_recipes_differ(searched: RunRecord, plain: RunRecord) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    page = comparison_page([searched, plain])
    recipes = page[page.index("How the recipes differ") :]
    assert re.search(
        r">method</th><td class=\"value\">inq</td><td class=\"value\">ptq</td>", recipes
    )
    assert ">seed</th>" not in recipes
