"""A live progress bar on a terminal, plain lines elsewhere."""

import itertools
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from octavo.dnq.evaluator import Trial
from octavo.errors import printable
from octavo.progress import Event
from octavo.ptq.freezer import LayerResult
from octavo.runs.training import StepFigures

__all__ = ["Display"]

QUIET = 15.0  # seconds between plain lines


class Display:
    """A ``Progress`` callback that shows the events of a run on a rich console.

    Use it as a context manager, so that the bar is gone in the end.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_interactive  # a terminal that can move its cursor
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(None),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._label = ""
        self._printed = time.monotonic()  # the time of the last plain line
        self._first_trial = time.monotonic()
        self._rewards: list[float] = []
        self._best = ""  # the widths of the best trial

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event: a note, a layer, a step of retraining or a trial of the search."""
        if event.phase == "note":
            self._print(event.message)
        elif isinstance(event.detail, LayerResult):
            self._show_layer(event, event.detail)
        elif isinstance(event.detail, StepFigures):
            self._show_step(event, event.detail)
        elif isinstance(event.detail, Trial):
            self._show_trial(event, event.detail)
        elif event.phase == "policy":
            return  # for the report; trials say enough here
        elif event.phase == "search" and not event.message:
            self._begin("PTQ of every layer at every width, and each layer alone")
            self._rewards = []
        else:
            self._begin(event.message)

    def _show_layer(self, event: Event, layer: LayerResult) -> None:
        """Move the bar of PTQ by a layer, or print a line."""
        if event.done == 1:
            self._begin("PTQ")
        line = (
            f"PTQ, layer {event.done}/{event.total}  {layer.name}  "
            f"output error {layer.compensated:.1%}"
        )
        if self._live:
            self._move(event, line)
        else:
            self._print(f"{line}, {layer.nearest:.1%} at the nearest levels")

    def _show_step(self, event: Event, step: StepFigures) -> None:
        """Move the bar of a stage by a step, or now and then print a line."""
        if self._label != event.message:
            self._begin(event.message)
        state = (
            f"epoch {step.epoch:.2f}  loss {step.loss:.4f}  {step.speed:.1f} steps/s  "
            f"{_time_left(event, step.speed)} left"
        )
        if self._live:
            self._move(event, f"{self._label}  {state}")
        elif event.done == event.total or self._is_time():
            self._print_now(f"{self._label}  step {event.done}/{event.total}  {state}")

    def _show_trial(self, event: Event, trial: Trial) -> None:
        """Move the bar of a search by a trial, or now and then print a line.

        It has the speed, the time left, and the curve of the best reward so far. Speed and time
        count from the first trial: the time before went into PTQ and into plans of single layers.
        """
        self._rewards.append(trial.reward)
        if len(self._rewards) == 1:
            self._printed = time.monotonic()
            self._first_trial = time.monotonic()
        if trial.reward == max(self._rewards):
            self._best = _widths(trial)
        plans = len(self._rewards)
        pace = ""
        if plans > 1:
            speed = (plans - 1) / max(time.monotonic() - self._first_trial, 1e-9)
            pace = f"{speed:.1f} plans/s  {_time_left(event, speed)} left  "
        line = (
            f"plan {plans}  best {max(self._rewards):.4g}  {pace}{_curve(self._rewards)}\n"
            f"best so far, bits by layer: {self._best}"
        )
        if self._live:
            self._move(event, line)
        elif self._is_time():
            self._print_now(line)

    def _begin(self, label: str) -> None:
        """Start a new bar."""
        self._label = label
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(label)

    def _move(self, event: Event, line: str) -> None:
        """Move the bar to where the event stands, and show ``line`` beside it."""
        if self._task is None:
            self._begin(line)
        if self._task is not None:
            self._bar.update(self._task, description=line, total=event.total, completed=event.done)

    def _is_time(self) -> bool:
        """Tell if the last plain line was long enough ago for another."""
        return time.monotonic() - self._printed > QUIET

    def _print_now(self, line: str) -> None:
        self._printed = time.monotonic()
        self._print(line)

    def _print(self, text: str) -> None:
        """Print lines, above the bar where there is one."""
        lines = "\n".join(map(printable, text.split("\n")))
        self._console.print(lines, highlight=False, soft_wrap=True, markup=False)


def _time_left(event: Event, speed: float) -> timedelta:
    """Return the time that the steps that are left take; a step too many takes no time back."""
    return timedelta(seconds=round(max(event.total - event.done, 0) / speed))


def _widths(trial: Trial) -> str:
    """Return the widths of a trial's layers, with spaces only where one is not a single digit.

    Where the bits of inputs are searched for too, ``3x8`` stands for weights and inputs.
    """
    inputs = trial.plan.activations
    widths = [
        f"{width}x{inputs[name]}" if name in inputs else str(width)
        for name, width in trial.plan.items()
    ]
    separator = " " if any(len(width) > 1 for width in widths) else ""
    return separator.join(widths)


def _curve(rewards: Sequence[float], width: int = 24) -> str:
    """Draw the best reward so far as it rose, one block character for each part of the search."""
    best = list(itertools.accumulate(rewards, max))
    picked = best
    if len(best) >= width:
        picked = [best[(part + 1) * len(best) // width - 1] for part in range(width)]
    low = picked[0]
    high = picked[-1]
    if high <= low:
        return "▁" * len(picked)
    heights = [1 + round(7 * (value - low) / (high - low)) for value in picked]
    return "".join(" ▁▂▃▄▅▆▇█"[height] for height in heights)
