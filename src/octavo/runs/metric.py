"""The metric of a task: measured, and written for people."""

import itertools
import math
from typing import Any

from torch import nn

from octavo.errors import RecipeError
from octavo.runs.task import Task

__all__ = ["metric_change", "metric_of", "metric_text"]

FEWEST = 2  # decimals of a metric as people read it,
MOST = 9
DIGITS = 4  # and its digits where it is below 10: shares, losses and correlations need them


def metric_of(task: Task, name: str, model: nn.Module, network: str) -> float:
    """Return a task's metric of a model.

    Args:
        task: the task.
        name: its name, for errors.
        model: the model; it is left as it was.
        network: what the model is, in words, for errors.

    Raises:
        RecipeError: the task returned no finite number.

    """
    value: Any = task.score(model)
    try:
        metric = float(value)
    except (TypeError, ValueError):
        metric = math.nan
    if not math.isfinite(metric):
        advice = _spoiled(model) or "return a float, where higher is better"
        raise RecipeError(
            f"task {name!r}: expected a finite number from its score(), the metric, got "
            f"{value!r:.60} for {network}; {advice}"
        )
    return metric


def _spoiled(model: nn.Module) -> str:
    """Name the first tensor of a model that holds numbers that are not finite; empty if none is."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if not bool(tensor.isfinite().all()):
            return f"its {name} holds numbers that are not finite: load sound weights"
    return ""


def metric_text(metric: float) -> str:
    """Return a metric as people read it: ``91.73``, ``0.9173``."""
    return f"{metric:.{_decimals(metric)}f}"


def metric_change(before: float, after: float) -> str:
    """Return in words how a metric changed: ``rose by 0.25``; ``is the same`` where no digit that
    people read did.
    """
    decimals = min(_decimals(before), _decimals(after))
    change = f"{abs(after - before):.{decimals}f}"
    if float(change) == 0:
        return "is the same"
    return f"{'rose' if after > before else 'fell'} by {change}"


def _decimals(metric: float) -> int:
    """Return the number of decimals that a metric is written with."""
    if metric == 0:
        return FEWEST
    decimals = DIGITS - 1 - math.floor(math.log10(abs(metric)))
    return min(max(FEWEST, decimals), MOST)
