"""Figures with matplotlib, for notebooks and papers: the front, a plan, the training curves.

Each function draws into ``ax``, or into a new figure, and returns the axes. They need the
extra ``plot``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.dnq.search_result import SearchResult
from octavo.errors import OctavoError, install
from octavo.formats.width import WidthLike, read_width
from octavo.plan import Plan
from octavo.report.colours import LIGHT
from octavo.report.record import RunRecord
from octavo.runs.search_figures import estimated_bytes

__all__ = ["front", "plan", "training"]


def front(result: SearchResult, ax: Any = None) -> Any:
    """Draw the trials of a search: objective against the estimated bytes of the file.

    The front, the uniform, the exact and the chosen plan are marked.

    Args:
        result: the result of ``search``.
        ax: matplotlib's axes, or None.

    Returns:
        The axes.

    Raises:
        OctavoError: matplotlib is not installed.

    """
    ax = _axes(ax)
    points = [(estimated_bytes(result, trial), trial.objective) for trial in result.trials]
    ax.scatter(*zip(*points, strict=True), s=12, color=LIGHT["faint"], label="trials")
    best = [(estimated_bytes(result, trial), trial.objective) for trial in result.pareto]
    ax.plot(*zip(*best, strict=True), color=LIGHT["first"], label="front")
    marks = (("uniform plan", "s", "second"), ("exact plan", "D", "fourth"), ("plan", "*", "third"))
    plans = (result.uniform, result.exact, result.plan)
    for (name, marker, colour), wanted in zip(marks, plans, strict=True):
        for trial in result.trials:
            if trial.plan == wanted:
                at = (estimated_bytes(result, trial), trial.objective)
                ax.plot(*at, marker, color=LIGHT[colour], markersize=10, label=name)
                break
    ax.set_xlabel("bytes of the file, estimated")
    ax.set_ylabel("objective of the trial; higher is better")
    ax.legend()
    return ax


def plan(plan: Mapping[str, WidthLike], ax: Any = None) -> Any:
    """Draw the bits of each layer as bars, the first layer on top.

    A bar is hatched where the layer has sums of two powers of two.

    Args:
        plan: a ``Plan``, or a dict from layer name to width.
        ax: matplotlib's axes, or None.

    Returns:
        The axes.

    Raises:
        OctavoError: matplotlib is not installed.
        PlanError: a value that is no width.

    """
    ax = _axes(ax, height=1 + 0.25 * len(plan))
    widths = {name: read_width(width, name) for name, width in plan.items()}
    bars = ax.barh(list(widths), [width.bits for width in widths.values()], color=LIGHT["first"])
    for bar, width in zip(bars, widths.values(), strict=True):
        bar.set_hatch("" if width == width.bits else "//")
        ax.annotate(
            str(width), (width.bits, bar.get_y() + bar.get_height() / 2), (3, 0),
            textcoords="offset points", va="center",
        )  # fmt: skip
    ax.invert_yaxis()
    ax.set_xlabel("bits of a weight")
    ax.set_xlim(0, 9)
    if isinstance(plan, Plan) and plan and all(plan.weights.get(name) for name in plan):
        ax.set_title(f"{plan.cost().average_bits:.3g} bits on average")
    return ax


def training(run: str | Path, ax: Any = None) -> Any:
    """Draw the loss of a run's retraining, step by step, with its control if there was one.

    A line stands at the beginning of each stage, with the share of weights that are frozen in it.

    Args:
        run: the folder of a finished run.
        ax: matplotlib's axes, or None.

    Returns:
        The axes.

    Raises:
        OctavoError: matplotlib is not installed, or the run did not retrain.
        FormatError: the folder has no result, or a file in it is damaged.

    """
    record = RunRecord.load(run)
    stages = record.details.get("stages", {})
    if not any(stage.get("curve") for stage in stages.get("quantized", ())):
        raise OctavoError(f"{run}: expected a run that retrained, found no loss in its details")
    ax = _axes(ax)
    for network, style in (("quantized", "-"), ("control", "--")):
        colour = LIGHT["first"] if network == "quantized" else LIGHT["second"]
        steps, losses, _ = _joined(stages.get(network, []))
        if steps:
            ax.plot(steps, losses, style, color=colour, label=network)
    for start, portion in _joined(stages["quantized"])[2]:
        ax.axvline(start, color=LIGHT["line"], zorder=0)
        ax.annotate(
            f"{portion:.0%} frozen", (start, 1), (3, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", rotation=90, fontsize="small",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.legend()
    return ax


def _joined(stages: Any) -> tuple[list[int], list[float], list[tuple[int, float]]]:
    """Return the steps and losses of all stages, one behind the other, and the first step and the
    frozen share of each stage.
    """
    steps: list[int] = []
    losses: list[float] = []
    starts: list[tuple[int, float]] = []
    for stage in stages:
        before = steps[-1] if steps else 0
        curve = stage.get("curve") or []
        steps += [before + step for step, _ in curve]
        losses += [max(loss, 1e-9) for _, loss in curve]  # a logarithm has no zero
        if curve:
            starts.append((before, stage["portion"]))
    return steps, losses, starts


def _axes(ax: Any, height: float = 4.0) -> Any:
    """Return the axes to draw into."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise OctavoError(f"octavo.plot: matplotlib is not installed: {install('plot')}") from error
    return plt.subplots(figsize=(7, height), layout="constrained")[1]
