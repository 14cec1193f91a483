"""The default retraining loop between INQ's stages: SGD, a cosine a stage, the full-precision network as the teacher."""

import math
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.errors import TrainingError
from octavo.task import Batch, Task, call

__all__ = ["Progress", "Retraining", "distillation", "retrain"]


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How a stage is retrained. Each stage starts anew: learning rate, momentum and schedule (INQ, section 2.2).

    Attributes:
        learning_rate: at the start of each stage; it falls to 0 along a half cosine.
        momentum: Nesterov's.
        weight_decay: on every parameter that trains.
        clip: largest norm of the gradient.
        temperature: softens teacher and student before their KL divergence.
        labels: share of the task's own, supervised loss in the total; 0 uses no labels.
        bfloat16: run the forward pass in bfloat16 where torch's autocast allows; weights and updates stay float32.

    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 5.0
    temperature: float = 1.0
    labels: float = 0.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("learning_rate", 0, math.inf), ("clip", 0, math.inf), ("temperature", 0, math.inf)):
            if not low < getattr(self, name) < high:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name, high in (("momentum", 1), ("weight_decay", math.inf), ("labels", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number from 0 to {high}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Progress:
    """Where retraining stands, after each step. ``loss`` is the mean since the stage began, ``speed`` in steps per second."""

    step: int
    steps: int
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
    observe: Callable[[Progress], None] = lambda _: None,
) -> float:
    """Train ``model`` in place for ``epochs`` (a fraction is a part of an epoch); its mode is train while it lasts.

    Args:
        model: any module; frozen weights are the business of what holds them.
        task: gives the batches and, for ``settings.labels``, the supervised loss.
        epochs: how long.
        settings: how.
        teacher: the network to imitate, in evaluation mode; it may be None if ``settings.labels`` is 1.
        observe: called after each step.

    Returns:
        The mean loss.

    Raises:
        TrainingError: the loss is NaN or infinite; the message names the step.

    """
    length = _batches_per_epoch(task)
    steps = round(epochs * length)
    if not steps:
        return 0.0
    update, loss_of = _optimizer(model, settings, steps), distillation(model, task, settings, teacher)
    training, started, total = model.training, time.monotonic(), 0.0
    model.train()
    try:
        for step, batch in enumerate(_stream(task, steps), 1):
            loss = loss_of(batch)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(f"step {step} of {steps}: the loss is {value}; lower the learning rate or the clipping norm")
            update(loss)
            total += value
            observe(Progress(step, steps, step / length, total / step, step / (time.monotonic() - started)))
    finally:
        model.train(training)
    return total / steps


def _optimizer(model: nn.Module, settings: Retraining, steps: int) -> Callable[[Tensor], None]:
    """What makes one step down the gradient of a loss: clipped SGD with Nesterov momentum, its rate on half a cosine."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nesterov, decay = settings.momentum > 0, settings.weight_decay
    optimizer = torch.optim.SGD(trained, settings.learning_rate, settings.momentum, weight_decay=decay, nesterov=nesterov)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        schedule.step()

    return update


def distillation(model: nn.Module, task: Task, settings: Retraining, teacher: nn.Module | None) -> Callable[[Batch], Tensor]:
    """The loss of a batch: KL divergence from the teacher's outputs, mixed with the task's own loss by ``settings.labels``.

    The divergence is the mean over the rows of logits, times the squared temperature (Hinton et al., 1503.02531).
    """
    if teacher is None and settings.labels < 1:
        raise TrainingError("expected a teacher network, or labels: 1 for the task's own loss alone; got neither")

    def loss(batch: Batch) -> Tensor:
        with _autocast(model, settings):
            if not settings.labels:
                return _divergence(call(model, batch[0]), _taught(teacher, batch), settings.temperature)
            supervised, outputs = _supervised(model, task, batch)
            if settings.labels == 1:
                return supervised
            divergence = _divergence(outputs, _taught(teacher, batch), settings.temperature)
        return settings.labels * supervised + (1 - settings.labels) * divergence

    return loss


def _taught(teacher: nn.Module | None, batch: Batch) -> Any:
    if teacher is None:
        raise TrainingError("expected a teacher network, got none")
    with torch.no_grad():
        return call(teacher, batch[0])


def _supervised(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Any]:
    """The task's own loss and the outputs that the model gave on the way: one forward pass serves both losses."""
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    try:
        loss = task.loss(model, batch)
    finally:
        hook.remove()
    return loss.float(), seen[-1] if seen else None


def _divergence(outputs: Any, taught: Any, temperature: float) -> Tensor:
    if not isinstance(outputs, Tensor) or not isinstance(taught, Tensor) or outputs.shape != taught.shape:
        raise TrainingError(
            f"expected the model and its teacher to return logits of one shape, got {_form(outputs)} and {_form(taught)}; "
            "set labels: 1 to train by the task's own loss"
        )
    student = F.log_softmax(outputs.float().flatten(0, -2) / temperature, -1)
    target = F.log_softmax(taught.float().flatten(0, -2) / temperature, -1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def _form(outputs: Any) -> str:
    return f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__


def _autocast(model: nn.Module, settings: Retraining) -> torch.autocast:
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=settings.bfloat16)


def _batches_per_epoch(task: Task) -> int:
    batches = task.train_batches()
    length = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if not length:
        raise TrainingError("expected at least one training batch, got none from the task's train_batches()")
    return length


def _stream(task: Task, steps: int) -> Iterator[Batch]:
    """``steps`` batches, from as many epochs as they take."""
    while steps > 0:
        for batch in task.train_batches():
            yield batch
            steps -= 1
            if not steps:
                return
