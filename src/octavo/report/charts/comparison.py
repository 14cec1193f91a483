"""The chart that compares runs: their metric against the bytes of their files."""

from collections.abc import Sequence
from operator import itemgetter

import altair as alt

from octavo.dnq.front import undominated
from octavo.report.charts.theme import Colours, Figure, data
from octavo.report.record import RunRecord
from octavo.runs.metric import metric_text
from octavo.runs.run_folder import Json

__all__ = ["front_figure"]


def front_figure(
    records: Sequence[RunRecord], colours: Colours, metric: str = "metric (higher is better)"
) -> Figure:
    """Return the accuracy-size front of several runs; ``metric`` is the title of its axis."""
    rows = [_row(record) for record in records]
    front = undominated(rows, itemgetter("bytes"), itemgetter("metric"))
    base = alt.Chart(data(rows)).encode(
        x=alt.X(
            "bytes:Q",
            title="bytes of the file (log scale)",
            scale=alt.Scale(type="log", nice=False, padding=48),
            axis=alt.Axis(format="~s", tickCount=6),
        ),
        y=alt.Y("metric:Q", title=metric, scale=alt.Scale(zero=False, padding=18)),
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("method:N"),
            alt.Tooltip("shown:N", title="metric"),
            alt.Tooltip("bytes:Q", format=",d"),
            alt.Tooltip("ratio:Q", title="times smaller", format=".1f"),
        ],
    )
    line = (
        alt.Chart(data(front))
        .mark_line(color=colours["first"], strokeWidth=1.8)
        .encode(x="bytes:Q", y="metric:Q", order="bytes:Q")
    )
    dots = base.mark_point(filled=True, size=90, opacity=1, color=colours["first"])
    return Figure(
        "front",
        "Metric against the size of the file",
        "Each dot is a run. The line joins the runs that no other beats in both metric and size. "
        "Dashed: the network in full precision, before.",
        alt.layer(line, *_before(records, colours), dots, *_names(rows, front[1:])),
        360,
    )


def _names(rows: Sequence[Json], on_line: Sequence[Json]) -> list[alt.Chart]:
    """Return the names of the runs: above the line where they are on it, else below their dots.

    The smallest has nothing but the axis on its left, so its name is below too.
    """
    others = [row for row in rows if row not in on_line]
    above = alt.MarkDef("text", align="right", dx=5, dy=-11)
    below = alt.MarkDef("text", align="left", dx=6, dy=13)
    return [
        alt.Chart(data(own), mark=mark).encode(x="bytes:Q", y="metric:Q", text="label:N")
        for own, mark in ((on_line, above), (others, below))
        if own  # Vega warns of a layer without rows
    ]


def _row(record: RunRecord) -> Json:
    return {
        "run": record.name,
        "label": record.name,
        "method": record.method,
        "bytes": record.result["file_bytes"],
        "metric": record.result["score"],
        "shown": metric_text(record.result["score"]),
        "ratio": record.result["ratio"],
    }


def _before(records: Sequence[RunRecord], colours: Colours) -> list[alt.Chart]:
    """Return a line for each metric in full precision; runs of one network share it."""
    scores = sorted({record.result["float_score"] for record in records})
    shown = {f"full precision {metric_text(score)}": score for score in scores}
    rows = [{"metric": score, "name": name} for name, score in shown.items()]
    rule = alt.Chart(data(rows)).mark_rule(color=colours["second"], strokeDash=[5, 3])
    text = alt.Chart(data(rows)).mark_text(align="left", dx=3, dy=-6, color=colours["second"])
    return [
        rule.encode(y="metric:Q"),
        text.encode(x=alt.value(0), y="metric:Q", text="name:N"),
    ]
