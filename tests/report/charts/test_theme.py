"""In all charts better is up, and the colours are only those that are given."""

import json
import re
from typing import Any

import altair as alt

from octavo.report.charts.theme import Figure, configured, data, upwards
from octavo.report.colours import LIGHT, variables


def figure() -> Figure:
    rows = [{"x": 1, "shown": 0.1}, {"x": 2, "shown": 0.01}]
    chart = alt.Chart(data(rows)).mark_point().encode(x="x:Q", y=upwards("loss", divergence=True))
    return Figure("a", "The title", "The caption.", chart, 100)


def axis_of(divergence: bool) -> dict[str, Any]:
    axis: Any = upwards("loss", divergence=divergence).to_dict()
    return dict(axis)


def test_better_is_up_and_the_axis_says_what_better_is() -> None:
    falling = axis_of(True)
    assert falling["scale"]["reverse"] is True
    assert falling["title"] == "loss (nearer 0 is better)"
    rising = axis_of(False)
    assert "reverse" not in rising["scale"]
    assert rising["title"] == "loss (higher is better)"


def test_a_page_has_the_colours_of_its_style_sheet_and_a_file_has_its_own() -> None:
    page = configured(figure(), variables())
    assert page["width"] == "container"
    assert not re.search(r"#[0-9a-f]{6}", json.dumps(page["config"]))
    file = configured(figure(), LIGHT, 300)
    assert file["width"] == 300
    assert file["background"] == LIGHT["paper"]
    assert "var(--" not in json.dumps(file)


def test_who_cannot_see_the_chart_hears_its_title_and_caption() -> None:
    assert configured(figure(), LIGHT)["description"] == "The title. The caption."
