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
from octavo.ptq.calibration import LayerResult
from octavo.runs.training import Progress as Step

__all__ = ["Display"]

QUIET = 15.0  # seconds between plain lines


class Display:
    """Shows a run on a rich console; use it as a context manager."""

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
        self._said = self._started = time.monotonic()
        self._rewards, self._trials, self._best = list[float](), 0, ""

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

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def stage(self, name: str, index: int, stages: int) -> None:
        """Start the bar of a stage."""
        self._begin(f"{name}, stage {index + 1}/{stages}")

    def layer(self, error: LayerResult) -> None:
        """Move the bar of the closed form by a layer, or print a line."""
        if error.done == 1:
            self._begin("closed form")
        line = f"closed form, layer {error.done}/{error.layers}  {error.name}  off by {error.compensated:.1%}"
        if self._live and self._task is not None:
            self._bar.update(self._task, description=line, total=error.layers, completed=error.done)
        else:
            self.note(f"{line}, {error.nearest:.1%} at the nearest levels")

    def step(self, progress: Step) -> None:
        """Move the bar, or now and then print a line."""
        left = timedelta(seconds=round((progress.steps - progress.step) / progress.speed))
        state = f"epoch {progress.epoch:.2f}  loss {progress.loss:.4f}  {progress.speed:.1f} steps/s  {left} left"
        if self._live and self._task is not None:
            line = f"{self._label}  {state}"
            self._bar.update(
                self._task, description=line, total=progress.steps, completed=progress.step
            )
        elif progress.step == progress.steps or time.monotonic() - self._said > QUIET:
            self._said = time.monotonic()
            self.note(f"{self._label}  step {progress.step}/{progress.steps}  {state}")

    def searching(self, trials: int) -> None:
        """Start the bar of a search for bits, of at most so many trials."""
        self._begin("closed form of every layer and bit-width")
        self._rewards, self._trials = [], trials

    def trial(self, trial: Trial) -> None:
        """Move that bar by a plan that was scored, or now and then print a line: speed, time left,
        how the best reward rose.
        """
        self._rewards.append(trial.reward)
        if len(self._rewards) == 1:
            self._started = self._said = time.monotonic()  # what came before was no trial of a plan
        done, took = len(self._rewards), time.monotonic() - self._started
        speed = done / max(took, 1e-9)
        left = timedelta(seconds=round(max(self._trials - done, 0) / speed))
        if trial.reward == max(self._rewards):
            inputs = trial.plan.activations
            bits = [
                f"{width}x{inputs[name]}" if name in inputs else str(width)
                for name, width in trial.plan.items()
            ]
            self._best = (" " if max(map(len, bits)) > 1 else "").join(bits)
        state = f"best {max(self._rewards):.4g}  {speed:.1f} plans/s  {left} left"
        line = f"plan {done}  {state}  {_curve(self._rewards)}\nbest so far, bits by layer: {self._best}"
        if self._live and self._task is not None:
            self._bar.update(self._task, description=line, total=self._trials, completed=done)
        elif time.monotonic() - self._said > QUIET:
            self._said = time.monotonic()
            self.note(line)

    def _begin(self, label: str) -> None:
        self._label = label
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(label)


def _curve(rewards: Sequence[float], width: int = 24) -> str:
    """The best reward so far as it rose, in block characters, one for each part of the search."""
    best = list(itertools.accumulate(rewards, max))
    picked = (
        [best[(i + 1) * len(best) // width - 1] for i in range(width)]
        if len(best) >= width
        else best
    )
    low, high = picked[0], picked[-1]
    return "".join(
        " ▁▂▃▄▅▆▇█"[1 + round(7 * (value - low) / (high - low))] if high > low else "▁"
        for value in picked
    )
