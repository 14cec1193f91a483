"""The steps of retraining: SGD with Nesterov momentum down the clipped gradient, its rate on half a
cosine.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.activations.quantizer import scales as scales_of
from octavo.errors import TrainingError
from octavo.network.forward import device_of
from octavo.runs.retraining import Retraining
from octavo.runs.step_log import steps_between_readings

__all__ = ["Descent"]

SCALE_RATE = 10  # the learning rate of activation scales, in units of that of weights
OCTAVE = 2.0  # the most by which a scale may grow or shrink in a stage: at 8 bits, some ran away


class Descent:
    """The function that makes one step down the gradient of a loss.

    On a CPU it changes no parameter if the loss or the norm of its gradient is not finite;
    elsewhere it does not wait for these numbers.

    Args:
        model: its parameters that require gradients are changed.
        settings: the settings of the training.
        steps: the number of steps that there will be.

    Raises:
        TrainingError: there is nothing to train.

    """

    def __init__(self, model: nn.Module, settings: Retraining, steps: int) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._trained:
            raise TrainingError(
                f"expected {type(model).__name__} to have parameters that require gradients, "
                "found none"
            )
        rate = settings.learning_rate
        self._clip = settings.clip
        self._scales = scales_of(model)
        self._at_first = [scale.item() for scale in self._scales]  # what they may move away from
        groups = _parameter_groups(self._trained, self._scales, settings)
        momentum = settings.momentum
        self._optimizer = torch.optim.SGD(groups, rate, momentum, nesterov=momentum > 0)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, steps)
        self._at_hand = steps_between_readings(device_of(model)) == 1

    def __call__(self, losses: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Make a step down the gradient of the sum of losses. Each loss is asked for when the graph
        of the one before is gone.

        Returns:
            The sum, and the norm of its gradient before clipping.

        """
        self._optimizer.zero_grad()
        parts = []
        for part in losses:
            part.backward()
            parts.append(part.detach().reshape(()))
        loss = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
        norm = nn.utils.clip_grad_norm_(self._trained, self._clip)
        if self._at_hand and not (math.isfinite(norm.item()) and math.isfinite(loss.item())):
            return loss, norm
        self._optimizer.step()
        self._schedule.step()
        with torch.no_grad():
            for scale, first in zip(self._scales, self._at_first, strict=True):
                scale.clamp_(first / OCTAVE, first * OCTAVE)
        return loss, norm

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on after the last step, but for the parameters."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scales": self._at_first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was taken."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._at_first = state["scales"]


def _parameter_groups(
    trained: list[nn.Parameter], scales: list[Any], settings: Retraining
) -> list[dict[str, Any]]:
    """Split the parameters: the scales of activations have a higher rate and no weight decay."""
    scale_ids = {id(scale) for scale in scales}
    return [
        {
            "params": [parameter for parameter in trained if id(parameter) not in scale_ids],
            "weight_decay": settings.weight_decay,
        },
        {
            "params": [parameter for parameter in trained if id(parameter) in scale_ids],
            "lr": SCALE_RATE * settings.learning_rate,
        },
    ]
