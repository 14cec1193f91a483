"""The charts of the layers: their bits and bytes, and their weights before and after."""

from collections.abc import Callable

import altair as alt

from octavo.report.charts.theme import Chart, Colours, Figure, data
from octavo.report.record import LayerRow, RunRecord
from octavo.runs.run_folder import Json

__all__ = ["layer_figures", "weights_figure"]

ROW = 19  # pixels of a layer's bar


def layer_figures(record: RunRecord, colours: Colours) -> list[Figure]:
    """Return the bars of each layer: its bits, its bytes, its weights and its sensitivity."""
    rows = [row for row in record.layers if row.bits is not None]
    if not rows:
        return []
    figures = [
        _bars(rows, "bits", "Bits of each layer", "bits", _bits, colours["first"], "d"),
        _bars(
            rows,
            "bytes",
            "Bytes of each layer in the file",
            "bytes",
            _bytes,
            colours["third"],
            ",.0f",
        ),
        _bars(
            rows, "parameters", "Weights of each layer", "weights", _weights, colours["faint"], ",d"
        ),
    ]
    if any(row.loss_alone is not None for row in rows):
        title = "Sensitivity: loss of the objective when only this layer is quantized"
        figures.append(
            _bars(rows, "sensitivity", title, "loss alone", _loss, colours["second"], ".3~g")
        )
    elif any(row.compensated is not None for row in rows):
        title = "Sensitivity: error of each layer's outputs after calibration"
        figures.append(
            _bars(rows, "sensitivity", title, "relative error", _error, colours["second"], ".1%")
        )
    return figures


def _bits(row: LayerRow) -> float:
    digits = "".join(filter(str.isdigit, str(row.bits)))  # apot6 has 6 bits
    return int(digits or 0)


def _bytes(row: LayerRow) -> float:
    return row.stored_bytes or 0.0


def _weights(row: LayerRow) -> float:
    return row.weights


def _loss(row: LayerRow) -> float:
    return max(row.loss_alone or 0.0, 0.0)


def _error(row: LayerRow) -> float:
    return row.compensated or 0.0


def _bars(
    rows: list[LayerRow],
    name: str,
    title: str,
    unit: str,
    value: Callable[[LayerRow], float],
    colour: str,
    form: str,
) -> Figure:
    """Return one bar for each layer, with its value written at its end."""
    values = [{"layer": row.name, "value": value(row)} for row in rows]
    most = max(value(row) for row in rows) or 1.0
    axis = alt.Axis(tickCount=4, format=_axis_format(form, most))
    base = alt.Chart(data(values)).encode(
        y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, ticks=False)),
        x=alt.X("value:Q", title=unit, axis=axis, scale=alt.Scale(domain=[0, most * 1.2])),
        tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("value:Q", title=unit, format=form)],
    )
    bars = base.mark_bar(color=colour, height={"band": 0.7})
    numbers = base.mark_text(align="left", dx=4).encode(text=alt.Text("value:Q", format=form))
    caption = f"One bar for each layer, in the order of the network; {unit} at its end."
    return Figure(f"layers-{name}", title, caption, bars + numbers, ROW * len(rows))


def _axis_format(form: str, most: float) -> str:
    """Return the format of an axis: SI prefixes are for large numbers only."""
    if form.endswith("%"):
        return "~%"
    return "~s" if most >= 1000 else "~g"


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
    return alt.layer(before, stems + dots).resolve_scale(y="independent")


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
