"""The default retraining loop between INQ's stages: SGD, a cosine a stage, the full-precision
network as the teacher.
"""

import math
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.activations.quantizer import scales as scales_of
from octavo.errors import TrainingError
from octavo.network.calling import call, device_of, in_mode, on_device
from octavo.network.outputs import alike, described, parts_of
from octavo.runs.task import Batch, Task

__all__ = ["Progress", "Retraining", "distillation", "retrain", "step_count"]


STEPS_FASTER = 10  # times the learning rate is that of the steps of activations
OCTAVE = 2.0  # the most by which a step may grow or shrink in a stage: at 8 bits, some ran away


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How a stage is retrained. Each stage starts anew: learning rate, momentum and schedule (INQ,
    section 2.2).

    Attributes:
        learning_rate: at the start of each stage; it falls to 0 along a half cosine. Ten times as
            high for the steps of activations, which would hardly move otherwise.
        momentum: Nesterov's.
        weight_decay: on every parameter that trains, but for the steps of activations.
        clip: largest norm of the gradient.
        temperature: softens teacher and student before their KL divergence.
        labels: share of the task's own, supervised loss in the total; 0 uses no labels.
        bfloat16: run the forward pass in bfloat16 where torch's autocast allows; weights and
            updates stay float32.

    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 5.0
    temperature: float = 1.0
    labels: float = 0.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0, math.inf),
            ("clip", 0, math.inf),
            ("temperature", 0, math.inf),
        ):
            if not low < getattr(self, name) < high:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name, high in (("momentum", 1), ("labels", 1)):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name}: expected a number from 0 to {high}, got {getattr(self, name)}"
                )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay: expected a number of at least 0, got {self.weight_decay}"
            )


@dataclass(frozen=True)
class Progress:
    """Where retraining stands, after each step. ``loss`` is the mean since the stage began,
    ``speed`` in steps per second.
    """

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
    """Train ``model`` in place for ``epochs`` (a fraction is a part of an epoch); it is in training
    mode while that lasts.

    Args:
        model: any module; frozen weights are the business of what holds them.
        task: gives the batches and, for ``settings.labels``, the supervised loss.
        epochs: how long.
        settings: how.
        teacher: the network to imitate, in evaluation mode; it may be None if ``settings.labels``
            is 1.
        observe: called after each step.

    Returns:
        The mean loss.

    Raises:
        TrainingError: the loss or its gradient is not finite (the message names the step), or there
            is nothing to train.

    """
    length = _batches_per_epoch(task)
    steps = round(epochs * length)
    if not steps:
        return 0.0
    update, loss_of = (
        _optimizer(model, settings, steps),
        distillation(model, task, settings, teacher),
    )
    started, total = time.monotonic(), 0.0
    with in_mode(model, training=True):
        for step, batch in enumerate(_stream(task, steps, device_of(model)), 1):
            loss = loss_of(batch)
            _check_finite("loss", value := loss.item(), step, steps)
            _check_finite("gradient's norm", update(loss), step, steps)
            total += value
            observe(
                Progress(
                    step,
                    steps,
                    step / length,
                    total / step,
                    step / max(time.monotonic() - started, 1e-9),
                )
            )
    return total / steps


def step_count(task: Task, epochs: float) -> int:
    """How many steps :func:`retrain` makes in so many epochs."""
    return round(epochs * _batches_per_epoch(task))


def _check_finite(what: str, value: float, step: int, steps: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step} of {steps}: the {what} is {value}; lower the learning rate or the clipping norm"
        )


def _optimizer(model: nn.Module, settings: Retraining, steps: int) -> Callable[[Tensor], float]:
    """What makes one step down the gradient of a loss: clipped SGD with Nesterov momentum, its rate
    on half a cosine.

    It returns the gradient's norm before clipping; where that is not finite, no parameter was
    changed.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError(
            f"expected {type(model).__name__} to have parameters that require gradients, found none"
        )
    spared, rate = {id(step) for step in scales_of(model)}, settings.learning_rate
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in trained if id(parameter) not in spared],
            "weight_decay": settings.weight_decay,
        },
        {
            "params": [parameter for parameter in trained if id(parameter) in spared],
            "lr": STEPS_FASTER * rate,
        },
    ]
    optimizer = torch.optim.SGD(groups, rate, settings.momentum, nesterov=settings.momentum > 0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ranges = [(step, step.item() / OCTAVE, step.item() * OCTAVE) for step in scales_of(model)]

    def update(loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, settings.clip).item()
        if math.isfinite(norm):
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for step, least, most in ranges:
                    step.clamp_(least, most)
        return norm

    return update


def distillation(
    model: nn.Module, task: Task, settings: Retraining, teacher: nn.Module | None
) -> Callable[[Batch], Tensor]:
    """The loss of a batch: how far the outputs are from the teacher's, mixed with the task's own
    loss by ``settings.labels``.

    Logits count by their KL divergence, the mean over rows, times the squared temperature (Hinton
    et al., 1503.02531); all else that the model returns by its relative squared error.
    ``octavo.network.outputs`` says which is which.
    """
    if teacher is None and settings.labels < 1:
        raise TrainingError(
            "expected a teacher network, or labels: 1 for the task's own loss alone; got neither"
        )

    def loss(batch: Batch) -> Tensor:
        with _autocast(model, settings):
            if not settings.labels:
                return _lost(
                    call(model, batch[0]), _taught(teacher, batch), batch, settings.temperature
                )
            supervised, outputs = _supervised(model, task, batch)
            if settings.labels == 1:
                return supervised
            lost = _lost(outputs, _taught(teacher, batch), batch, settings.temperature)
        return settings.labels * supervised + (1 - settings.labels) * lost

    return loss


def _taught(teacher: nn.Module | None, batch: Batch) -> Any:
    if teacher is None:
        raise TrainingError("expected a teacher network, got none")
    with torch.no_grad():
        return call(teacher, batch[0])


def _supervised(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Any]:
    """The task's own loss and the outputs that the model gave on the way: one forward pass serves
    both losses.
    """
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    try:
        loss = task.loss(model, batch)
    finally:
        hook.remove()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TrainingError(f"expected the task's loss to be a scalar tensor, got {_form(loss)}")
    return loss.float(), seen[-1] if seen else None


def _lost(outputs: Any, taught: Any, batch: Batch, temperature: float) -> Tensor:
    own, full = (parts_of(some, batch[0], temperature=temperature) for some in (outputs, taught))
    if not alike(own, full):
        raise TrainingError(
            f"expected the model and its teacher to return the same floating-point tensors, got {described(own)} and "
            f"{described(full)}; set labels: 1 to train by the task's own loss"
        )
    losses = [
        (temperature**2 if a.classes else 1.0) * (a.lost(b) / b.unit())
        for a, b in zip(own, full, strict=True)
    ]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def _form(loss: Any) -> str:
    return f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__


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


def _stream(task: Task, steps: int, device: torch.device) -> Iterator[Batch]:
    """``steps`` batches on ``device``, from as many epochs as they take."""
    while steps > 0:
        before = steps
        for batch in task.train_batches():
            yield on_device(batch, device)
            steps -= 1
            if not steps:
                return
        if steps == before:
            raise TrainingError(
                "the task's train_batches() gave nothing when asked again: it must give a new epoch every time"
            )
