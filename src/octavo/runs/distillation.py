"""The loss of retraining: the distance of a network's outputs from those of its teacher, and the
task's own loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import TrainingError
from octavo.network.forward import call, device_of
from octavo.network.outputs import Part, alike, described, parts_of
from octavo.runs.retraining import Retraining
from octavo.runs.task import Batch, Task

__all__ = ["distillation"]


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
