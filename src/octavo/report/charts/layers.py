"""The charts of the layers: their bits and bytes, and their weights before and after."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import altair as alt

from octavo.report.charts.theme import Chart, Colours, Figure, data
from octavo.report.record import LayerRow, RunRecord
from octavo.runs.run_folder import Json

__all__ = ["layer_figures", "weights_figure"]

ROW = 19  # pixels of a layer's bar


@dataclass(frozen=True)
class _Measure:
    """A number that every layer has.

    Attributes:
        name: the name of its figure.
        title: the title of its figure.
        unit: the title of its axis.
        of: returns the number of a layer; None where the run did not write it down.
        colour: the name of its colour.
        form: the format in which it is written at the end of its bar.

    """

    name: str
    title: str
    unit: str
    of: Callable[[LayerRow], float | None]
    colour: str
    form: str


def _bits(row: LayerRow) -> float:
    digits = "".join(filter(str.isdigit, str(row.bits)))  # apot6 has 6 bits
    return int(digits or 0)


MEASURES = (
    _Measure("bits", "Bits of each layer", "bits", _bits, "first", "d"),
    _Measure(
        "bytes",
        "Bytes of each layer in the file",
        "bytes",
        lambda row: row.stored_bytes,
        "third",
        ",.0f",
    ),
    _Measure(
        "parameters", "Weights of each layer", "weights", lambda row: row.weights, "faint", ",d"
    ),
    _Measure(
        "sensitivity",
        "Sensitivity: loss of the objective when only this layer is quantized",
        "loss alone",
        lambda row: row.loss_alone,
        "second",
        ".3~g",
    ),
    _Measure(
        "errors",
        "Error of each layer's outputs after calibration",
        "relative error",
        lambda row: row.compensated,
        "fourth",
        ".1%",
    ),
)


def layer_figures(record: RunRecord, colours: Colours) -> list[Figure]:
    """Return the bars of each layer, one figure for each measure that the run wrote down."""
    rows = [row for row in record.layers if row.bits is not None]
    known = [each for each in MEASURES if any(each.of(row) is not None for row in rows)]
    return [_bars(rows, measure, colours) for measure in known]


def _bars(rows: list[LayerRow], measure: _Measure, colours: Colours) -> Figure:
    """Return one bar for each layer, with its number written at its end."""
    values: list[dict[str, Any]] = [
        {"layer": row.name, "value": max(measure.of(row) or 0, 0)} for row in rows
    ]
    most = max(row["value"] for row in values) or 1.0
    axis = alt.Axis(tickCount=4, format=_axis_format(measure.form, most))
    number = alt.Tooltip("value:Q", title=measure.unit, format=measure.form)
    base = alt.Chart(data(values)).encode(
        y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, ticks=False)),
        x=alt.X("value:Q", title=measure.unit, axis=axis, scale=alt.Scale(domain=[0, most * 1.2])),
        tooltip=["layer:N", number],
    )
    bars = base.mark_bar(color=colours[measure.colour], height={"band": 0.7})
    text = alt.Text("value:Q", format=measure.form)
    numbers = base.mark_text(align="left", dx=4).encode(text=text)
    caption = f"One bar for each layer, in the order of the network; {measure.unit} at its end."
    return Figure(f"layers-{measure.name}", measure.title, caption, bars + numbers, ROW * len(rows))


def _axis_format(form: str, most: float) -> str:
    """Return the format of an axis: SI prefixes are for large numbers only."""
    if form.endswith("%"):
        return "~%"
    return "~s" if most >= 1000 else ".3~g"


def weights_figure(record: RunRecord, colours: Colours) -> Figure | None:
    """Return the histogram of one layer's weights before, and its levels after."""
    known = [row for row in record.details.get("layers", []) if "before" in row]
    if not known:
        return None
    names = [row["name"] for row in known]
    largest = max(known, key=lambda row: row["weights"])["name"]
    chosen = alt.param(
        "layer", value=largest, bind=alt.binding_select(options=names, name="layer ")
    )
    return Figure(
        "weights",
        "Weights before and after",
        "Bars: the weights in full precision, in units of the scale of their channel. Lines with a "
        "dot: the share of weights at each level now. Choose a layer below the chart.",
        _histogram(known, colours).add_params(chosen),
        260,
    )


def _histogram(layers: list[Json], colours: Colours) -> Chart:
    x = alt.X("x:Q", title="weight in units of its scale", scale=alt.Scale(nice=False))
    before = (
        alt.Chart(data([_before(layer) for layer in layers]))
        .transform_filter("datum.layer == layer")
        .transform_flatten(["x", "to", "share"])
        .mark_rect(color=colours["faint"], opacity=0.75)
        .encode(
            x=x,
            x2="to:Q",
            y=alt.Y("share:Q", title="before: share in each bin", axis=alt.Axis(format="%")),
            y2=alt.datum(0),
            tooltip=[alt.Tooltip("x:Q", format=".3f"), alt.Tooltip("share:Q", format=".2%")],
        )
    )
    levels = (
        alt.Chart(data([_after(layer) for layer in layers]))
        .transform_filter("datum.layer == layer")
        .transform_flatten(["x", "share"])
        .encode(
            x=x,
            y=alt.Y(
                "share:Q", title="after: share at each level", axis=alt.Axis(format="%", grid=False)
            ),
            tooltip=[
                alt.Tooltip("x:Q", title="level", format=".6~g"),
                alt.Tooltip("share:Q", format=".2%"),
            ],
        )
    )
    stems = levels.mark_rule(color=colours["second"], strokeWidth=2).encode(y2=alt.datum(0))
    dots = levels.mark_point(color=colours["second"], filled=True, size=55, opacity=1)
    both: Chart = alt.layer(before, stems + dots).resolve_scale(y="independent")
    return both


def _before(layer: Json) -> Json:
    counts = layer["before"]["counts"]
    low = layer["before"]["low"]
    width = (layer["before"]["high"] - low) / len(counts)
    edges = [round(low + width * index, 4) for index in range(len(counts) + 1)]
    total = sum(counts)
    shares = [round(count / total, 5) for count in counts]
    return {"layer": layer["name"], "x": edges[:-1], "to": edges[1:], "share": shares}


def _after(layer: Json) -> Json:
    counts = layer["after"]["counts"]
    shares = [round(count / sum(counts), 5) for count in counts]
    return {"layer": layer["name"], "x": layer["after"]["levels"], "share": shares}
