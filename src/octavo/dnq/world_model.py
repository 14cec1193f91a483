"""The world model: an estimate of a choice's objective before it is measured.

A first model is corrected by what was measured so far. The correction is the mean of a Gaussian
process over the errors of the first model (Rasmussen and Williams, 2006, eq. 2.25): the fewer
layers tell two choices apart, the more alike are their corrections. So near a choice that was
measured the estimate begins from what that choice really lost, and the first model only says what
the few other layers change. (Ours.)
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.dnq.output_sum import OutputSum, one_hot
from octavo.dnq.reward import LEAST
from octavo.dnq.sensitivity import Sensitivity, single_layer_choices
from octavo.dnq.space import Action, Choice

__all__ = ["WorldModel", "world_model_of"]

REACH = 20.0  # layers: two choices that differ in so many have corrections of correlation 1/e
NOISE = 0.02  # variance of the corrections of equal choices, as a share of the whole variance
KEPT = 1000  # measurements that are used, the latest: solving takes their number's third power


class WorldModel:
    """A model that estimates objectives of choices, and learns from those that were measured.

    Args:
        actions: the actions of each layer.
        first: the first model: objectives of choices, (choices,).
        divergence: True if objectives are minus a divergence; then the first model is wrong by a
            factor, else by a difference.

    """

    def __init__(
        self,
        actions: Sequence[Sequence[Action]],
        first: Callable[[Sequence[Choice]], Tensor],
        *,
        divergence: bool,
    ) -> None:
        self._first = first
        self.divergence = divergence
        self._layers = len(actions)
        self._columns = {pair: at for at, pair in enumerate(single_layer_choices(actions))}
        self._measured = torch.empty(0, len(self._columns), dtype=torch.float64)
        self._errors = torch.empty(0, dtype=torch.float64)
        self._mean = 0.0
        self._weights = self._errors  # K^-1 (errors - mean), (measured,)

    def learn(self, choices: Sequence[Choice], objectives: Sequence[float]) -> None:
        """Take up the measured objectives of choices."""
        if not choices:
            return
        measured = self._scaled(torch.tensor(objectives, dtype=torch.float64))
        errors = measured - self._scaled(self._first(choices))
        rows = one_hot(choices, self._columns).double()
        self._measured = torch.cat([self._measured, rows])[-KEPT:]
        self._errors = torch.cat([self._errors, errors])[-KEPT:]
        self._mean = float(self._errors.mean())
        noise = NOISE * torch.eye(len(self._measured), dtype=torch.float64)
        covariance = self._covariance(self._measured) + noise
        self._weights = torch.linalg.solve(covariance, self._errors - self._mean)

    def objectives(self, choices: Sequence[Choice]) -> Tensor:
        """Return one estimate for each choice, float64."""
        rows = one_hot(choices, self._columns).double()
        first = self._scaled(self._first(choices))
        # Eq. 2.25: the mean at x is m + k(x)^T K^-1 (errors - m).
        estimated = first + self._mean + self._covariance(rows) @ self._weights
        return -torch.exp(-estimated) if self.divergence else estimated

    def _scaled(self, objectives: Tensor) -> Tensor:
        """Return objectives on the scale on which corrections are added."""
        if not self.divergence:
            return objectives.double()
        return -(-objectives.double()).clamp(min=LEAST).log()

    def _covariance(self, rows: Tensor) -> Tensor:
        """Return the covariance of choices with those that were measured, (choices, measured)."""
        different = self._layers - rows @ self._measured.T
        return torch.exp(-different / REACH)


def world_model_of(actions: Sequence[Sequence[Action]], sensitivity: Sensitivity) -> WorldModel:
    """Return a world model that begins from what single layers were measured to change.

    The first model sums changes of outputs, or losses where the objective is not a function of the
    outputs.
    """
    if sensitivity.full:
        outputs = OutputSum(sensitivity.full, sensitivity.changed)
        return WorldModel(actions, outputs.objectives, divergence=True)
    layers = np.arange(len(actions))

    def summed(choices: Sequence[Choice]) -> Tensor:
        losses = [sensitivity.losses[layers, list(choice)].sum() for choice in choices]
        return -torch.tensor(losses, dtype=torch.float64)

    return WorldModel(actions, summed, divergence=False)
