"""The charts of the search: its trials, and what its policy believed and earned."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from octavo.report.charts.theme import Chart, Colours, Figure, data, upwards
from octavo.report.course import Course
from octavo.runs.run_folder import Json

__all__ = ["belief_figures", "reward_figure", "trials_figure"]

MARKS = ("uniform plan", "exact plan", "chosen plan")
COLUMNS = 30  # of the map of all layers
SHAPES = ("square", "triangle-up", "circle")


def trials_figure(course: Course, colours: Colours) -> Figure:
    """Return all trials as objective against bytes, with the plans that matter marked."""
    layers = [_points(course, colours), _front(course.front, course, colours["first"], [1, 0])]
    proposed = ""
    if len(course.proposals) > 1:
        layers.append(_front(course.proposals, course, colours["fourth"], [6, 3]))
        proposed = (
            "Dashed line: what the trained policy proposes, as its world model estimates it. "
        )
    layers += _marks(course, colours)
    return Figure(
        "trials",
        "All plans that were measured",
        "Each dot is a plan: point at it to see the bits of its layers. Solid line: the plans that "
        f"no other beats in both size and {course.objective}. {proposed}"
        "Larger marks: the uniform plan, the exact solution of the additive model, and the plan "
        "that was chosen.",
        alt.layer(*layers),
        340,
    )


def _x() -> alt.X:
    scale = alt.Scale(zero=False, nice=True, padding=8)
    return alt.X("bytes:Q", title="bytes of the file (estimated)", scale=scale)


def _y(course: Course) -> alt.Y:
    name = "divergence from full precision" if course.divergence else "metric"
    return upwards(name, divergence=course.divergence)


def _tooltip(course: Course, *first: alt.Tooltip) -> list[alt.Tooltip]:
    return [
        *first,
        alt.Tooltip("plan:N", title="bits"),
        alt.Tooltip("bytes:Q", format=",d"),
        alt.Tooltip("shown:Q", title=course.objective, format=".4~g"),
    ]


def _slim(rows: Sequence[Json], *keys: str) -> list[Json]:
    """Return rows with only what a chart shows."""
    return [{key: row[key] for key in ("bytes", "shown", "plan", *keys)} for row in rows]


def _points(course: Course, colours: Colours) -> Chart:
    points: Chart = (
        alt.Chart(data(_slim(course.trials, "number")))
        .mark_circle(color=colours["faint"], size=42, opacity=0.65)
        .encode(
            x=_x(), y=_y(course), tooltip=_tooltip(course, alt.Tooltip("number:Q", title="trial"))
        )
    )
    return points


def _front(rows: Sequence[Json], course: Course, colour: str, dash: list[int]) -> Chart:
    line: Chart = (
        alt.Chart(data(_slim(rows)))
        .mark_line(color=colour, strokeWidth=1.8, strokeDash=dash, interpolate="step-after")
        .encode(x=_x(), y=_y(course), order="bytes:Q")
    )
    return line


def _marks(course: Course, colours: Colours) -> list[Chart]:
    """Return the marks of the uniform, the exact and the chosen plan, the last as a ring."""
    range_ = [colours["second"], colours["fourth"], colours["third"]]
    colour = alt.Scale(domain=list(MARKS), range=range_)
    shape = alt.Scale(domain=list(MARKS), range=list(SHAPES))
    chosen = [row for row in course.marked if row["mark"] == MARKS[-1]]
    others = [row for row in course.marked if row["mark"] != MARKS[-1]]
    return [
        alt.Chart(data(_slim(rows, "mark")))
        .mark_point(filled=filled, size=size, opacity=1, strokeWidth=2.5)
        .encode(
            x=_x(),
            y=_y(course),
            shape=alt.Shape("mark:N", title=None, scale=shape),
            color=alt.Color("mark:N", title=None, scale=colour),
            tooltip=_tooltip(course, alt.Tooltip("mark:N")),
        )
        for rows, filled, size in ((others, True, 120), (chosen, False, 330))
        if rows  # Vega warns of a layer without rows
    ]


def reward_figure(course: Course, colours: Colours) -> Figure | None:
    """Return the reward of each episode, and the best one so far."""
    if not course.rewards:
        return None
    base = alt.Chart(data(course.rewards)).encode(
        x=alt.X("episode:Q", title="episodes", scale=alt.Scale(nice=False, padding=6))
    )
    name = "divergence of the episode" if course.divergence else "reward"
    dots = base.mark_circle(color=colours["faint"], size=30, opacity=0.7).encode(
        y=upwards(name, divergence=course.divergence),
        tooltip=[
            alt.Tooltip("episode:Q"),
            alt.Tooltip("shown:Q", title=course.objective, format=".4~g"),
        ],
    )
    best = base.mark_line(color=colours["first"], strokeWidth=2, interpolate="step-after")
    caption = "Each dot is a plan that the policy sampled; the line is the best of them so far. "
    if course.divergence:
        caption += "The reward is minus the divergence, so that it rises where dots go up."
    return Figure(
        "rewards", "Reward over episodes", caption, alt.layer(dots, best.encode(y="best:Q")), 240
    )


def belief_figures(course: Course, colours: Colours) -> list[Figure]:
    """Return the probabilities of one layer's bits, and the mean bits of all layers, through
    training.
    """
    if len(course.beliefs) < 2:
        return []
    return [_stack(course, colours), _means(course, colours)]


def _stack(course: Course, colours: Colours) -> Figure:
    """Return the probabilities of one layer at a time, stacked."""
    widths = list(dict.fromkeys(_label(width) for row in course.actions for width in row))[::-1]
    chosen = alt.param(
        "layer",
        value=course.layers[0],
        bind=alt.binding_select(options=list(course.layers), name="layer "),
    )
    share = alt.Y(
        "probability:Q",
        stack="zero",
        title="probability",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%"),
    )
    shade = alt.Scale(domain=widths, range=[1, 0.2])  # the most bits have the strongest colour
    areas = (
        alt.Chart(data(_probabilities(course)))
        .transform_filter("datum.layer == layer")
        .transform_flatten(["episode", "probability"])
        .mark_area(color=colours["first"], line={"color": colours["paper"], "strokeWidth": 1})
        .encode(
            x=alt.X("episode:Q", title="episodes", scale=alt.Scale(nice=False)),
            y=share,
            opacity=alt.Opacity("bits:N", title=None, sort=widths, scale=shade),
            tooltip=["bits:N", "episode:Q", alt.Tooltip("probability:Q", format=".1%")],
        )
        .add_params(chosen)
    )
    return Figure(
        "beliefs",
        "What the policy believes: one layer",
        "The probability of each width for the layer that is chosen below the chart, within the "
        "budget, after so many episodes. The stronger the colour, the more bits.",
        areas,
        220,
    )


def _probabilities(course: Course) -> list[Json]:
    """Return a row for each layer and width, with its probability after each of the episodes."""
    episodes = [moment["episode"] for moment in course.beliefs]
    return [
        {
            "layer": name,
            "bits": _label(width),
            "episode": episodes,
            "probability": [_known(moment, at)[action] for moment in course.beliefs],
        }
        for at, name in enumerate(course.layers)
        for action, width in enumerate(course.actions[at])
    ]


def _label(width: Any) -> str:
    return f"{width} bits" if str(width).isdigit() else str(width)


def _means(course: Course, colours: Colours) -> Figure:
    """Return the mean bits of all layers as a map."""
    rows = _mean_bits(course)
    chart = (
        alt.Chart(data(rows))
        .transform_flatten(["from", "to", "mean"])
        .mark_rect(color=colours["first"])
        .encode(
            x=alt.X("from:Q", title="episodes", scale=alt.Scale(nice=False)),
            x2="to:Q",
            y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelLimit=150)),
            opacity=alt.Opacity(
                "mean:Q",
                title="mean bits",
                scale=alt.Scale(range=[0.06, 1]),
                legend=alt.Legend(symbolType="square", tickCount=4),
            ),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("from:Q", title="episodes"),
                alt.Tooltip("mean:Q", title="mean bits", format=".2f"),
            ],
        )
    )
    return Figure(
        "mean-bits",
        "What the policy believes: all layers",
        "The mean of each layer's bits under the policy, through training: the stronger the "
        "colour, the more bits.",
        chart,
        max(17 * len(rows), 80),
    )


def _mean_bits(course: Course) -> list[Json]:
    """Return a row for each layer: the mean of its bits from one moment to the next."""
    every = -(-len(course.beliefs) // COLUMNS)  # rounded up
    beliefs = course.beliefs[::every]
    moments = [moment["episode"] for moment in beliefs]
    ends = [*moments[1:], course.beliefs[-1]["episode"]]
    rows = []
    for at, name in enumerate(course.layers):
        bits = [_bits(action) for action in course.actions[at]]
        means = [
            round(sum(p * b for p, b in zip(_known(moment, at), bits, strict=False)), 3)
            for moment in beliefs
        ]
        rows.append({"layer": name, "from": moments, "to": ends, "mean": means})
    return rows


def _known(moment: Json, layer: int) -> list[float]:
    return [probability or 0.0 for probability in moment["probabilities"][layer]]


def _bits(action: Any) -> int:
    """Return the bits of an action as it is written: ``4``, ``apot6`` or ``3x8``."""
    digits = "".join(filter(str.isdigit, str(action).split("x", maxsplit=1)[0]))
    return int(digits or 0)
