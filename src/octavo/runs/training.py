"""The default retraining loop between the stages of INQ.

It is SGD with Nesterov momentum. The learning rate falls along half a cosine in each stage, and the
full-precision network is the teacher, whose outputs the network imitates.
"""

import time
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch import nn

from octavo.errors import TrainingError
from octavo.network.forward import device_of, in_mode, on_device
from octavo.network.random_state import RandomState
from octavo.network.ranks import ALONE, Ranks
from octavo.progress import Event, Progress, silent
from octavo.runs.batch_stream import BatchStream
from octavo.runs.descent import Descent
from octavo.runs.distillation import distillation
from octavo.runs.parallel import OwnNumbers, OwnRows, PartLosses
from octavo.runs.retraining import Retraining
from octavo.runs.step_log import StepLog, steps_between_readings
from octavo.runs.task import Task

__all__ = ["StepFigures", "Training", "retrain", "step_count"]


@dataclass(frozen=True)
class StepFigures:
    """The figures of retraining after one of its steps.

    Attributes:
        epoch: epochs since the stage began; a fraction is a part of an epoch.
        loss: the mean loss since the stage began.
        speed: steps per second.

    """

    epoch: float
    loss: float
    speed: float


def retrain(
    model: nn.Module,
    task: Task,
    epochs: float,
    settings: Retraining,
    *,
    teacher: nn.Module | None = None,
    progress: Progress = silent,
) -> float:
    """Train ``model`` in place; it is in training mode while that lasts.

    Args:
        model: any module; if weights are frozen, its parametrizations keep them still.
        task: gives the batches and, for ``settings.labels``, the supervised loss.
        epochs: the length of the training; a fraction is a part of an epoch.
        settings: the settings of the training.
        teacher: the network to imitate, in evaluation mode; it may be None if ``settings.labels``
            is 1.
        progress: called with an ``Event`` of the phase ``"retrain"``, whose detail is a
            ``StepFigures``: after each step on a CPU; on a GPU after every twentieth and the last,
            because a loss that is read after each step would make the GPU wait.

    Returns:
        The mean loss.

    Raises:
        TrainingError: the loss or its gradient is not finite (the message names the step), or there
            is nothing to train. On a GPU the weights may be spoiled then: the steps up to the next
            reading were made.

    """
    training = Training(model, task, epochs, settings, teacher=teacher)
    with in_mode(model, training=True):
        while training.done < training.steps:
            event = training.step()
            if event is not None:
                progress(event)
    return training.mean_loss


class Training:
    """Retraining step by step, which can be saved after any step and resumed.

    The arguments are those of :func:`retrain`, and the ranks that train the model together; the
    caller puts the model into training mode.

    Attributes:
        steps: the number of steps that there will be.
        done: the number of steps that were made.

    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        epochs: float,
        settings: Retraining,
        *,
        teacher: nn.Module | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._epoch = _batches_per_epoch(task)  # its steps
        self.steps = round(epochs * self._epoch)
        self.done = 0
        if not self.steps:
            return
        device = device_of(model)
        self._update = Descent(model, settings, self.steps)
        loss_of = distillation(model, task, settings, teacher)
        self._losses = PartLosses(model, loss_of, settings.accumulate, ranks)
        self._log = StepLog(self.steps, steps_between_readings(device), ranks)
        self._random = RandomState(model)
        self._numbers = OwnNumbers(self._random, ranks)
        self._batches = BatchStream(OwnRows(task, ranks), self._random)
        self._ranks = ranks
        self._device = device
        self._started = (0, time.monotonic())  # the steps that were done then, and the time

    def step(self) -> Event | None:
        """Make one step; return its event, or None where its numbers were not read.

        Raises:
            TrainingError: as :func:`retrain` does.

        """
        with self._numbers.of_data():
            batch, share = next(self._batches)
        losses = self._losses(on_device(batch, self._device), share)
        was_read = self._log.add(*self._update(losses))
        self.done += 1
        if not was_read:
            return None
        first, started = self._started
        seconds = max(time.monotonic() - started, 1e-9)
        figures = StepFigures(
            self.done / self._epoch, self._log.total / self.done, (self.done - first) / seconds
        )
        return Event("retrain", self.done, self.steps, detail=figures)

    @property
    def mean_loss(self) -> float:
        """The mean loss of the steps that were made; 0 if there were none."""
        return self._log.total / self.done if self.done else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on after the last step, but for the model's own state."""
        return {
            "done": self.done,
            "total": self._log.read_all(),
            "descent": self._update.state_dict(),
            "batches": self._batches.state_dict(),
            "random": self._numbers.read(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was taken; the batches up to there are read again.

        Raises:
            ValueError: the state has more steps than there are, or none.

        """
        if not isinstance(state["done"], int) or not 0 < state["done"] <= self.steps:
            raise ValueError(f"done: expected 1 to {self.steps} steps, got {state['done']!r}")
        self.done = state["done"]
        self._log.go_on(self.done, state["total"])
        self._update.load_state_dict(state["descent"])
        self._batches.load_state_dict(state["batches"])
        self._random.put(state["random"])
        self._numbers = OwnNumbers(self._random, self._ranks)
        self._started = (self.done, time.monotonic())


def step_count(task: Task, epochs: float) -> int:
    """Return the number of steps that :func:`retrain` makes in so many epochs."""
    return round(epochs * _batches_per_epoch(task))


def _batches_per_epoch(task: Task) -> int:
    batches = task.train_batches()
    length = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if not length:
        raise TrainingError(
            "expected at least one training batch, got none from the task's train_batches()"
        )
    return length
