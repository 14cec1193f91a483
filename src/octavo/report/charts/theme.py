"""The type of a figure, and the configuration and the axes that all charts share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt

from octavo.runs.run_folder import Json

__all__ = ["Chart", "Colours", "Figure", "Rows", "configured", "data", "upwards"]

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart
Colours: TypeAlias = Mapping[str, str]
Rows: TypeAlias = Sequence[Mapping[str, Any]]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        name: identifies it in the page, and names its files.
        title: the title.
        caption: one or two sentences that say what is seen, for those who cannot see it too.
        chart: the chart.
        height: its height in pixels, without axes.

    """

    name: str
    title: str
    caption: str
    chart: Chart
    height: int = 280


def data(rows: Rows) -> alt.InlineData:
    """Return rows as the data of a chart."""
    return alt.InlineData(values=[dict(row) for row in rows])


def upwards(title: str, *, divergence: bool) -> alt.Y:
    """Return the axis of an objective, on which better is higher.

    A divergence is shown as it is, on a logarithmic axis that falls.
    """
    if divergence:
        scale = alt.Scale(type="log", reverse=True, nice=False, padding=12)
        return alt.Y("shown:Q", title=f"{title} (nearer 0 is better)", scale=scale)
    scale = alt.Scale(zero=False, nice=True)
    return alt.Y("shown:Q", title=f"{title} (higher is better)", scale=scale)


def configured(figure: Figure, colours: Colours, width: int | str = "container") -> Json:
    """Return the Vega-Lite specification of a figure in these colours.

    Args:
        figure: the figure.
        colours: the colours, by the names that ``octavo.report.colours`` has for them.
        width: pixels of the figure in a file; ``"container"`` fills the width of a page.

    """
    in_page = width == "container"
    chart = figure.chart.properties(
        width=width,
        height=figure.height,
        background="transparent" if in_page else colours["paper"],
        autosize=alt.AutoSizeParams(type="fit-x" if in_page else "pad", contains="padding"),
        padding={"left": 2, "right": 8, "top": 4, "bottom": 2},
    )
    spec: Json = chart.to_dict()
    spec["description"] = f"{figure.title}. {figure.caption}"  # what a screen reader says
    spec["config"] = {
        "font": FONT,
        "view": {"stroke": None},
        "axis": _axes(colours),
        "legend": _legends(colours, {"signal": "width < 420 ? 2 : 4"} if in_page else 4),
        "text": {"fill": colours["ink"], "fontSize": 11},
    }
    return spec


def _axes(colours: Colours) -> Json:
    """Return the configuration of all axes."""
    return {
        "domainColor": colours["line"],
        "gridColor": colours["line"],
        "gridOpacity": 0.6,
        "tickColor": colours["line"],
        "labelColor": colours["muted"],
        "titleColor": colours["ink"],
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
    }


def _legends(colours: Colours, columns: Any) -> Json:
    """Return the configuration of all legends, with the number of their columns."""
    return {
        "orient": "top",
        "labelColor": colours["ink"],
        "titleColor": colours["ink"],
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "labelLimit": 260,
        "columns": columns,
        "symbolStrokeWidth": 2,
    }
