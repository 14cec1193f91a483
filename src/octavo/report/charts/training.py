"""The charts of retraining: loss and metric through the stages of INQ, with the share frozen."""

import itertools

import altair as alt

from octavo.report.charts.theme import Colours, Figure, data
from octavo.report.record import RunRecord
from octavo.runs.metric import metric_text
from octavo.runs.run_folder import Json

__all__ = ["training_figures"]

QUANTIZED = "quantized"
CONTROL = "control"


def training_figures(record: RunRecord, colours: Colours) -> list[Figure]:
    """Return the loss of each step, and the metric after each stage."""
    stages = record.details.get("stages", {})
    figures = []
    if any(stage.get("curve") for stage in record.stages):
        figures.append(_loss_figure(stages, colours))
    if any("score" in stage for stage in record.stages):
        figures.append(_metric_figure(record, colours))
    return figures


def _curve(stages: list[Json], network: str) -> list[Json]:
    """Return the points of all stages, one behind the other."""
    rows = []
    before = 0
    for stage in stages:
        points = stage.get("curve", [])
        for step, loss in points:
            rows.append({"step": before + step, "loss": max(loss, 1e-9), "network": network})
        before += points[-1][0] if points else 0
    return rows


def _bands(stages: list[Json]) -> list[Json]:
    """Return the first and the last step of each stage, with the share that is frozen in it."""
    lengths = [stage["curve"][-1][0] if stage.get("curve") else 0 for stage in stages]
    ends = list(itertools.accumulate(lengths))
    return [
        {
            "from": end - length,
            "to": end,
            "share": stage["portion"],
        }
        for stage, length, end in zip(stages, lengths, ends, strict=True)
        if length
    ]


def _loss_figure(stages: dict[str, list[Json]], colours: Colours) -> Figure:
    """Return the loss of both networks over bands that show how much is frozen."""
    rows = _curve(stages.get(QUANTIZED, []), QUANTIZED) + _curve(stages.get(CONTROL, []), CONTROL)
    names = [QUANTIZED, CONTROL]
    colour = alt.Scale(domain=names, range=[colours["first"], colours["second"]])
    dash = alt.Scale(domain=names, range=[[1, 0], [5, 3]])
    lines = (
        alt.Chart(data(rows))
        .mark_line(strokeWidth=1.6, interpolate="monotone")
        .encode(
            x="step:Q",
            y=alt.Y("loss:Q", title="loss (log scale)", scale=alt.Scale(type="log", nice=False)),
            color=alt.Color("network:N", title=None, scale=colour),
            strokeDash=alt.StrokeDash("network:N", title=None, scale=dash),
            tooltip=["network:N", "step:Q", alt.Tooltip("loss:Q", format=".4~g")],
        )
    )
    return Figure(
        "loss",
        "Loss through the stages",
        "The loss of each step of retraining. A band is a stage; the number in it is the share of "
        "weights that is frozen. The control trains the same steps in full precision.",
        alt.layer(*_stage_bands(stages[QUANTIZED], colours), lines),
        260,
    )


def _stage_bands(stages: list[Json], colours: Colours) -> list[alt.Chart]:
    """Return a band for each stage, the stronger the more is frozen, and the share in numbers."""
    base = alt.Chart(data(_bands(stages))).encode(
        x=alt.X("from:Q", title="step of retraining", scale=alt.Scale(nice=False))
    )
    strength = alt.Scale(domain=[0, 1], range=[0, 0.22])
    bands = base.mark_rect(color=colours["first"]).encode(
        x2="to:Q",
        opacity=alt.Opacity("share:Q", scale=strength, legend=None),
        tooltip=[alt.Tooltip("share:Q", title="share frozen", format=".1%")],
    )
    muted = colours["muted"]
    shares = base.mark_text(align="left", baseline="top", dx=3, dy=3, color=muted).encode(
        y=alt.value(0), text=alt.Text("share:Q", format=".0%")
    )
    return [bands, shares]


def _metric_figure(record: RunRecord, colours: Colours) -> Figure:
    scored = [stage for stage in record.stages if "score" in stage]
    rows = [{"stage": 0, "share": 0.0, "metric": record.result["float_score"]}]
    for number, stage in enumerate(scored, 1):
        rows.append({"stage": number, "share": stage["portion"], "metric": stage["score"]})
    shown = [row | {"shown": metric_text(row["metric"])} for row in rows]
    base = alt.Chart(data(shown)).encode(
        x=alt.X("share:Q", title="share of weights that is frozen", axis=alt.Axis(format="%")),
        y=alt.Y(
            "metric:Q", title="metric (higher is better)", scale=alt.Scale(zero=False, padding=16)
        ),
        tooltip=[
            alt.Tooltip("stage:Q", title="after stage"),
            alt.Tooltip("share:Q", title="share frozen", format=".1%"),
            alt.Tooltip("shown:N", title="metric"),
        ],
    )
    lines = base.mark_line(color=colours["first"], strokeWidth=2)
    dots = base.mark_point(color=colours["first"], filled=True, size=70, opacity=1)
    numbers = base.mark_text(dy=-11, align="center").encode(text="shown:N")
    layers = [lines, dots, numbers]
    if record.control is not None:
        layers += _control_rule(record.control, colours)
    return Figure(
        "metric",
        "Metric through the stages",
        "The metric in full precision, and after each stage of freezing and retraining. "
        "The dashed line is the control.",
        alt.layer(*layers),
        220,
    )


def _control_rule(control: float, colours: Colours) -> list[alt.Chart]:
    row = data([{"metric": control, "name": f"control {metric_text(control)}"}])
    rule = alt.Chart(row).mark_rule(color=colours["second"], strokeDash=[5, 3]).encode(y="metric:Q")
    text = (
        alt.Chart(row)
        .mark_text(align="right", dx=-3, dy=-7, color=colours["second"])
        .encode(x=alt.value("width"), y="metric:Q", text="name:N")
    )
    return [rule, text]
