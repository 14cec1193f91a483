"""What a choice would lose, before it is measured: a first model of the environment, corrected by
what was measured so far.

The correction is the mean of a Gaussian process over what the first model was wrong by (Rasmussen
and Williams, 2006, eq. 2.25): the fewer layers tell two choices apart, the more alike are their
corrections. So near a choice that was measured the estimate begins from what that choice really
lost, and the first model only says what the few other layers change. (Ours.)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.dnq.output_sum import one_hot
from octavo.dnq.space import Choice, single_layers

__all__ = ["WorldModel"]

REACH = 20.0  # layers: two choices that differ in so many have corrections of correlation 1/e
NOISE = 0.02  # what the corrections of equal choices would differ by, as a share of their variance
LEAST = 1e-12  # divergence that is told from none
KEPT = 1000  # measurements that are used, the latest: solving takes their number's third power


class WorldModel:
    """Estimates scores of choices.

    Args:
        options: the bits of each layer.
        first: the first model: scores of choices, (choices,).
        divergence: whether scores are minus a divergence; then the first model is wrong by a
            factor, else by a difference.

    """

    def __init__(
        self,
        options: Sequence[Sequence[int]],
        first: Callable[[Sequence[Choice]], Tensor],
        *,
        divergence: bool,
    ) -> None:
        self._first, self._divergence, self._layers = first, divergence, len(options)
        self._place = {pair: at for at, pair in enumerate(single_layers(options))}
        self._measured = torch.empty(0, len(self._place), dtype=torch.float64)
        self._wrong_by = torch.empty(0, dtype=torch.float64)
        self._mean, self._shares = 0.0, self._wrong_by

    def learn(self, choices: Sequence[Choice], scores: Sequence[float]) -> None:
        """Take up what choices really scored."""
        if not choices:
            return
        wrong_by = self._scale(torch.tensor(scores, dtype=torch.float64)) - self._scale(
            self._first(choices)
        )
        self._measured = torch.cat([self._measured, one_hot(choices, self._place).double()])[-KEPT:]
        self._wrong_by = torch.cat([self._wrong_by, wrong_by])[-KEPT:]
        self._mean = float(self._wrong_by.mean())
        covariance = self._covariance(self._measured) + NOISE * torch.eye(
            len(self._measured), dtype=torch.float64
        )
        self._shares = torch.linalg.solve(covariance, self._wrong_by - self._mean)

    def scores(self, choices: Sequence[Choice]) -> Tensor:
        """One estimate for each choice, float64."""
        estimated = (
            self._scale(self._first(choices))
            + self._mean
            + self._covariance(one_hot(choices, self._place).double()) @ self._shares
        )
        return -torch.exp(-estimated) if self._divergence else estimated

    def _scale(self, scores: Tensor) -> Tensor:
        """Scores on the scale on which corrections are added."""
        return -(-scores.double()).clamp(min=LEAST).log() if self._divergence else scores.double()

    def _covariance(self, rows: Tensor) -> Tensor:
        """Of choices with those that were measured."""
        different = self._layers - rows @ self._measured.T
        return torch.exp(-different / REACH)
