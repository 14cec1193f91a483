"""The losses and gradient norms of a training loop, read from the device several steps at a time.

To read a number from a GPU is to wait until the GPU has computed it. Meanwhile no further work is
queued, and the GPU falls idle after the reading. So the numbers stay on the device for some steps.
"""

import math

import torch
from torch import Tensor

from octavo.errors import TrainingError
from octavo.network.ranks import ALONE, Ranks

__all__ = ["StepLog", "steps_between_readings"]

READ_EVERY = 20  # steps on a GPU: a reading costs a fraction of a step then


def steps_between_readings(device: torch.device) -> int:
    """Return after how many steps the numbers are read: every step on a CPU, which has them at
    hand.
    """
    return 1 if device.type == "cpu" else READ_EVERY


class StepLog:
    """The losses and gradient norms of the steps of a training loop.

    Args:
        steps: the number of steps that there will be.
        every: the number of steps between two readings.
        ranks: the ranks whose mean loss is read.

    Attributes:
        read: the number of steps whose numbers were read.
        total: the sum of their losses.

    """

    def __init__(self, steps: int, every: int, ranks: Ranks = ALONE) -> None:
        self.read = 0
        self.total = 0.0
        self._steps = steps
        self._every = every
        self._ranks = ranks
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def add(self, loss: Tensor, norm: Tensor) -> bool:
        """Take the numbers of the next step, two scalars, and tell whether they were read: they are
        after every so many steps, and after the last.

        Raises:
            TrainingError: one of the numbers read is not finite; the message names its step.

        """
        self._losses.append(loss.detach().reshape(()))
        self._norms.append(norm.detach())
        taken = self.read + len(self._losses)
        if len(self._losses) < self._every and taken < self._steps:
            return False
        self._read()
        return True

    def read_all(self) -> float:
        """Read the numbers that were not read yet, and return the sum of all losses.

        Raises:
            TrainingError: as :meth:`add` does.

        """
        if self._losses:
            self._read()
        return self.total

    def go_on(self, read: int, total: float) -> None:
        """Go on after so many steps, whose losses have this sum."""
        self.read = read
        self.total = total

    def _read(self) -> None:
        losses = self._ranks.mean(torch.stack(self._losses)).tolist()
        norms = torch.stack(self._norms).tolist()
        self._losses.clear()
        self._norms.clear()
        for loss, norm in zip(losses, norms, strict=True):
            self._check_finite("loss", loss)
            self._check_finite("gradient's norm", norm)
            self.read += 1
            self.total += loss

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.read + 1} of {self._steps}: the {name} is {value}; "
                "lower the learning rate or the clipping norm"
            )
