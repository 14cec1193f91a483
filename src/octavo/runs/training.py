"""The default retraining loop between the stages of INQ.

It is SGD with Nesterov momentum. The learning rate falls along half a cosine in each stage, and the
full-precision network is the teacher, whose outputs the network imitates.
"""

import math
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import TrainingError
from octavo.network.forward import call, device_of, in_mode, on_device
from octavo.network.outputs import Part, alike, described, parts_of
from octavo.network.random_state import RandomState
from octavo.network.ranks import ALONE, Ranks
from octavo.progress import Event, Progress, silent
from octavo.runs.batch_stream import BatchStream
from octavo.runs.descent import Descent
from octavo.runs.parallel import OwnNumbers, OwnRows, PartLosses
from octavo.runs.step_log import StepLog, steps_between_readings
from octavo.runs.task import Batch, Task

__all__ = ["Retraining", "StepFigures", "Training", "distillation", "retrain", "step_count"]


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """The settings of retraining.

    Each stage starts anew with its learning rate, momentum and schedule (INQ, section 2.2).

    Attributes:
        learning_rate: the rate at the start of each stage; it falls to 0 along half a cosine. The
            scales of activations have ten times this rate, because they would hardly move
            otherwise.
        momentum: the momentum of Nesterov's method.
        weight_decay: the decay of every parameter that trains, apart from the scales of
            activations.
        clip: the largest norm of the gradient.
        temperature: softens the outputs of teacher and student before their KL divergence.
        labels: share of the task's own, supervised loss in the total; 0 uses no labels.
        accumulate: the number of parts that each batch is cut into. The gradient of the batch is
            made part by part, in less memory; only batch norms see a difference.
        bfloat16: run the forward pass in bfloat16 where torch's autocast allows it; weights and
            updates stay in float32.

    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 5.0
    temperature: float = 1.0
    labels: float = 0.0
    accumulate: int = 1
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        for name in ("momentum", "labels"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate: expected at least 1, got {self.accumulate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay: expected a number of at least 0, got {self.weight_decay}"
            )


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


def distillation(
    model: nn.Module, task: Task, settings: Retraining, teacher: nn.Module | None
) -> Callable[[Batch], Tensor]:
    """Return the function that computes the loss of a batch.

    The loss is ``labels * supervised + (1 - labels) * imitation``: the task's own loss, and the
    distance of the outputs from the teacher's. Logits count by their KL divergence, the mean over
    rows, times the squared temperature (Hinton et al., arXiv 1503.02531, section 2). All other
    outputs count by their relative squared error. ``octavo.network.outputs`` tells them apart.
    """
    if teacher is None and settings.labels < 1:
        raise TrainingError(
            "expected a teacher network, or labels: 1 for the task's own loss alone; got neither"
        )

    def loss(batch: Batch) -> Tensor:
        with _autocast(model, settings):
            if not settings.labels:
                outputs = call(model, batch[0])
                return _imitation(outputs, _taught(teacher, batch), batch, settings.temperature)
            supervised, outputs = _supervised(model, task, batch)
            if settings.labels == 1:
                return supervised
            taught = _taught(teacher, batch)
            imitation = _imitation(outputs, taught, batch, settings.temperature)
        return settings.labels * supervised + (1 - settings.labels) * imitation

    return loss


def _taught(teacher: nn.Module | None, batch: Batch) -> Any:
    """Return the outputs of the teacher."""
    if teacher is None:
        raise TrainingError("expected a teacher network, got none")
    with torch.no_grad():
        return call(teacher, batch[0])


def _supervised(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Any]:
    """Return the task's own loss, and the outputs that the model gave on the way.

    One forward pass serves both losses.
    """
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    try:
        loss = task.loss(model, batch)
    finally:
        hook.remove()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TrainingError(f"expected the task's loss to be a scalar tensor, got {got}")
    return loss.float(), seen[-1] if seen else None


def _imitation(outputs: Any, taught: Any, batch: Batch, temperature: float) -> Tensor:
    """Return the distance of ``outputs`` from those of the teacher, a scalar."""
    student = parts_of(outputs, batch[0], temperature=temperature)
    teacher = parts_of(taught, batch[0], temperature=temperature)
    if not alike(student, teacher):
        raise TrainingError(
            "expected the model and its teacher to return the same floating-point tensors, got "
            f"{described(student)} and {described(teacher)}; "
            "set labels: 1 to train by the task's own loss"
        )
    losses = [
        part.lost(wanted) / _unit(wanted) for part, wanted in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def _unit(part: Part) -> Tensor | float:
    """Return ``part.unit()``; a sum of squares stays on its device: nothing waits for it."""
    if part.classes:
        return part.unit()
    squares = part.rows.square().sum()
    return squares + (squares == 0)


def _autocast(model: nn.Module, settings: Retraining) -> torch.autocast:
    return torch.autocast(device_of(model).type, torch.bfloat16, enabled=settings.bfloat16)


def _batches_per_epoch(task: Task) -> int:
    batches = task.train_batches()
    length = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if not length:
        raise TrainingError(
            "expected at least one training batch, got none from the task's train_batches()"
        )
    return length
