"""A live progress bar on a terminal and in a notebook with ipywidgets, plain lines elsewhere."""

import time
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from octavo.errors import printable
from octavo.progress.event import Event
from octavo.progress.trials import SHOWN, Trials, time_left

__all__ = ["Display"]

QUIET = 15.0  # seconds between plain lines


class Display:
    """A ``Progress`` callback that shows the events of a computation on a rich console.

    Use it as a context manager, so that the bar is gone in the end. Each phase announces itself
    when it begins. Notes and the lines of calibrated layers stay; all else is drawn over.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        in_widgets = console.is_jupyter and find_spec("ipywidgets") is not None
        self._live = console.is_interactive or in_widgets  # it can draw over what it drew
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(None),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._label = ""
        self._began = time.monotonic()  # the time when the phase began
        self._printed = time.monotonic()  # the time of the last plain line
        self._trials: Trials | None = None  # of the search that goes on

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
        """Show an event: a note, the beginning of a phase, or a step of one."""
        if event.phase == "note":
            self._print(event.message)
        elif not event.done:
            self._announce(event)
        elif event.phase == "freeze":
            self._show_frozen(event)
        elif event.detail is None:
            self._show_count(event)
        elif event.phase == "calibrate":
            self._show_layer(event, event.detail)
        elif event.phase == "retrain":
            self._show_step(event, event.detail)
        elif event.phase == "search":
            self._show_trial(event, event.detail)

    def _announce(self, event: Event) -> None:
        """Begin a phase with a bar. Elsewhere, a line announces a phase whose steps are counted; a
        short one, and retraining, end in a line of their own.
        """
        if event.phase == "search" and not event.message:
            self._trials = None
            return
        self._begin(event.message)
        if not self._live and event.total and event.phase != "retrain":
            self._print_now_and_then(event.message, always=True)

    def _show_count(self, event: Event) -> None:
        """Show that a step is done of which there is nothing else to say."""
        if self._label != event.message:
            self._begin(event.message)
        elapsed = time.monotonic() - self._began
        line = f"{event.message}  {event.done}/{event.total}"
        if elapsed > SHOWN:
            line += f"  {time_left(event, event.done / elapsed)} left"
        if self._live:
            self._move(event, line)
        else:
            self._print_now_and_then(line)

    def _show_frozen(self, event: Event) -> None:
        """Show that a layer has frozen a portion of its weights."""
        line = f"freezing, layer {event.done}/{event.total}  {event.message}"
        if self._live:
            self._move(event, line)
        else:
            self._print(line)

    def _show_layer(self, event: Event, layer: Any) -> None:
        """Print the line of a calibrated layer, and move the bar."""
        if event.done == 1:
            self._begin("PTQ")
        took = f"  {layer.seconds:.1f} s" if layer.seconds else ""
        self._print(
            f"PTQ, layer {event.done}/{event.total}  {layer.name}  "
            f"output error {layer.compensated:.1%}, {layer.nearest:.1%} at the nearest levels{took}"
        )
        if self._live:
            self._move(event, f"PTQ, layer {event.done}/{event.total}")

    def _show_step(self, event: Event, step: Any) -> None:
        """Move the bar of a stage by a step, or now and then print a line."""
        if self._label != event.message:
            self._begin(event.message)
        state = (
            f"epoch {step.epoch:.2f}  loss {step.loss:.4f}  {step.speed:.1f} steps/s  "
            f"{time_left(event, step.speed)} left"
        )
        if self._live:
            self._move(event, f"{self._label}  {state}")
        else:
            line = f"{self._label}  step {event.done}/{event.total}  {state}"
            self._print_now_and_then(line, always=event.done == event.total)

    def _show_trial(self, event: Event, trial: Any) -> None:
        """Move the bar of a search by a trial, or now and then print its lines."""
        if self._trials is None:
            self._trials = Trials()
            self._begin("")
            self._printed = self._began
        line = self._trials.add(event, trial, time.monotonic())
        if self._live:
            self._move(event, line)
        else:
            self._print_now_and_then(line)

    def _begin(self, label: str) -> None:
        """Start a new bar."""
        self._label = label
        self._began = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(label, total=None)

    def _move(self, event: Event, line: str) -> None:
        """Move the bar to where the event stands, and show ``line`` beside it."""
        if self._task is None:
            self._begin(line)
        if self._task is not None:
            self._bar.update(self._task, description=line, total=event.total, completed=event.done)

    def _print_now_and_then(self, line: str, *, always: bool = False) -> None:
        """Print a line if the last one was long enough ago."""
        if always or time.monotonic() - self._printed > QUIET:
            self._printed = time.monotonic()
            self._print(line)

    def _print(self, text: str) -> None:
        """Print lines, above the bar where there is one."""
        lines = "\n".join(map(printable, text.split("\n")))
        self._console.print(lines, highlight=False, soft_wrap=True, markup=False)
