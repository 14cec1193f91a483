"""The course of a run for TensorBoard: losses, metrics, rewards, and the errors of layers."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError, brief, install
from octavo.progress import Event, Progress

__all__ = ["scalars_to"]


@contextlib.contextmanager
def scalars_to(folder: Path | None, progress: Progress) -> Iterator[Progress]:
    """Return a progress callback that writes the numbers of events into a folder, and passes the
    events on. Without a folder, it is ``progress`` itself.

    Raises:
        OctavoError: TensorBoard is not installed.

    """
    if folder is None:
        yield progress
        return
    writer = _writer(folder)
    rows = {"calibrate": _layer, "retrain": _step, "search": _trial}

    def watch(event: Event) -> None:
        if event.done and event.detail is not None and event.phase in rows:
            for name, value in rows[event.phase](event).items():
                writer.add_scalar(name, value, event.done)
        progress(event)

    try:
        yield watch
    finally:
        writer.close()


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise OctavoError(
            f"--tensorboard: importing it failed ({brief(error)}): {install('tensorboard')}"
        ) from error
    make: Callable[[str], Any] = SummaryWriter
    return make(str(folder))


def _layer(event: Event) -> dict[str, float]:
    """Return the output errors of a calibrated layer, relative to its outputs."""
    layer: Any = event.detail
    return {"PTQ/error": layer.compensated, "PTQ/error at the nearest levels": layer.nearest}


def _step(event: Event) -> dict[str, float]:
    """Return the mean loss since a stage of retraining began."""
    step: Any = event.detail
    return {f"{event.message}/loss": step.loss}


def _trial(event: Event) -> dict[str, float]:
    """Return the objective and the reward of a trial of the search."""
    trial: Any = event.detail
    return {"search/objective": trial.objective, "search/reward": trial.reward}
