"""A live progress bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from octavo.train import Progress as Step

__all__ = ["Display"]

COLUMNS = "{task.description}  epoch {task.fields[epoch]:.2f}  loss {task.fields[loss]:.4f}  {task.fields[speed]:.1f} steps/s"
QUIET = 15.0  # seconds between plain lines


class Display:
    """Shows a run on a rich console; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(TextColumn(COLUMNS), BarColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._task: TaskID | None = None
        self._label = ""
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def stage(self, name: str, index: int, stages: int) -> None:
        """Start the bar of a stage."""
        self._label = f"{name}, stage {index + 1}/{stages}"
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(self._label, epoch=0.0, loss=0.0, speed=0.0)

    def step(self, progress: Step) -> None:
        """Move the bar, or now and then print a line."""
        if self._console.is_terminal and self._task is not None:
            self._bar.update(
                self._task,
                total=progress.steps,
                completed=progress.step,
                epoch=progress.epoch,
                loss=progress.loss,
                speed=progress.speed,
            )
        elif progress.step == progress.steps or time.monotonic() - self._said > QUIET:
            self._said = time.monotonic()
            left = (progress.steps - progress.step) / progress.speed
            self.note(
                f"{self._label}  step {progress.step}/{progress.steps}  epoch {progress.epoch:.2f}  "
                f"loss {progress.loss:.4f}  {progress.speed:.1f} steps/s  {left:.0f} s left"
            )
