"""The drawing of charts: every run has its figures, as SVG and PNG too."""

from pathlib import Path

import pytest

from octavo.errors import OctavoError
from octavo.report import drawing
from octavo.report.colours import LIGHT, variables
from octavo.report.record import RunRecord


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "LIBRARIES", ("json", "nobody_has_it"))
    message = r"^the figure needs nobody_has_it, .* install octavo with its extra report$"
    with pytest.raises(OctavoError, match=message):
        drawing.require_charts("the figure")


def test_each_section_has_its_figures(searched: RunRecord, plain: RunRecord) -> None:
    pytest.importorskip("altair")
    figures = drawing.figures_of(searched, variables())
    names = {section: [figure.name for figure in some] for section, some in figures.items()}
    assert names == {
        "layers": [
            "layers-bits", "layers-bytes", "layers-parameters", "layers-sensitivity",
            "layers-errors",
        ],
        "search": ["trials"],
        "policy": ["beliefs", "mean-bits", "rewards"],
        "training": ["loss", "metric"],
        "weights": ["weights"],
    }  # fmt: skip
    assert not drawing.figures_of(plain, variables())["search"]
    assert not drawing.figures_of(plain, variables())["training"]


def test_a_specification_cannot_end_its_script(searched: RunRecord) -> None:
    pytest.importorskip("altair")
    for some in drawing.figures_of(searched, variables()).values():
        for figure in some:
            assert "<" not in drawing.page_spec(figure)


def test_figures_for_a_paper_are_svg_and_png(searched: RunRecord, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    figures = drawing.figures_of(searched, LIGHT)
    every = [figure for some in figures.values() for figure in some]
    files = drawing.save_figures(every, tmp_path)
    assert len(files) == 2 * len(every)
    for path in files:
        content = path.read_bytes()
        assert content.startswith(b"<svg" if path.suffix == ".svg" else b"\x89PNG")
        assert b"var(--" not in content
    front = drawing.save_figures(drawing.comparison_figures([searched], LIGHT), tmp_path)
    assert [path.name for path in front] == ["front.svg", "front.png"]
