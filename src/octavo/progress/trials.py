"""The course of a search in two lines of text."""

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from octavo.progress.event import Event

__all__ = ["Trials", "best_so_far", "time_left", "widths"]

BLOCKS = " ▁▂▃▄▅▆▇█"
BURST = 0.05  # seconds: trials that come so close together were measured before the first came
SHOWN = 0.5  # seconds after which a speed is known


class Trials:
    """The trials of a search so far, as text: how many, the best, the speed, the time left.

    Speed and time count from the first trials: the time before went into PTQ and into plans of
    single layers.
    """

    def __init__(self) -> None:
        self._rewards: list[float] = []
        self._best = ""  # the widths of the best trial
        self._first = 0.0  # the time of the first trial
        self._burst = 0  # trials that came with it

    def add(self, event: Event, trial: Any, now: float) -> str:
        """Take in a trial at the time ``now``, in seconds, and return two lines of text."""
        self._rewards.append(trial.reward)
        best = max(self._rewards)
        if trial.reward == best:
            self._best = widths(trial.plan)
        return (
            f"trial {event.done}/{event.total}  best {best:.4g}  {self._pace(event, now)}"
            f"{best_so_far(self._rewards)}\nbest so far, bits by layer: {self._best}"
        )

    def _pace(self, event: Event, now: float) -> str:
        """Return the speed and the time left; nothing until they are known."""
        if len(self._rewards) == 1:
            self._first = now
        elapsed = now - self._first
        if elapsed < BURST:
            self._burst = len(self._rewards)
        if elapsed < SHOWN or len(self._rewards) == self._burst:
            return ""
        speed = (len(self._rewards) - self._burst) / elapsed
        return f"{speed:.1f} plans/s  {time_left(event, speed)} left  "


def time_left(event: Event, speed: float) -> timedelta:
    """Return the time that the steps that are left take; a step too many takes no time back."""
    return timedelta(seconds=round(max(event.total - event.done, 0) / speed))


def widths(plan: Any) -> str:
    """Return the widths of a plan's layers, with spaces only where one is not a single digit.

    Where the bits of inputs are searched for too, ``3x8`` stands for weights and inputs.
    """
    inputs = plan.activations
    written = [
        f"{width}x{inputs[name]}" if name in inputs else str(width) for name, width in plan.items()
    ]
    separator = " " if any(len(width) > 1 for width in written) else ""
    return separator.join(written)


def best_so_far(rewards: Sequence[float], width: int = 24) -> str:
    """Draw the best reward so far as it rose, one block character for each part of the search."""
    best = list(itertools.accumulate(rewards, max))
    picked = best
    if len(best) >= width:
        picked = [best[(part + 1) * len(best) // width - 1] for part in range(width)]
    low = picked[0]
    high = picked[-1]
    if high <= low:
        return BLOCKS[1] * len(picked)
    heights = [1 + round(7 * (value - low) / (high - low)) for value in picked]
    return "".join(BLOCKS[height] for height in heights)
