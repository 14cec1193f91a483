"""A model of the environment that costs no evaluations: the outputs change by the sum of what each layer alone changes.

The losses of single layers do not add up, but to first order the changes of the outputs do, signs and all: layers whose errors
cancel are told from layers whose errors reinforce each other. So the divergence of the summed outputs ranks plans far better than
the sum of the divergences does. (Ours; DNQ published nothing of the kind.)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.search.space import Choice

__all__ = ["OutputSum", "one_hot"]

AT_ONCE = 1 << 22  # outputs that are estimated at a time: choices by rows by classes


class OutputSum:
    """Estimates scores of choices: minus the KL divergence from the full-precision outputs.

    Args:
        full: log probabilities in full precision, (rows, classes).
        changes: by layer and bits, what they change by where that layer alone is quantized.

    """

    def __init__(self, full: Tensor, changes: Mapping[tuple[int, int], Tensor]) -> None:
        self._full = full
        self._place = {pair: at for at, pair in enumerate(changes)}
        self._changes = torch.stack(list(changes.values())).flatten(1)

    def scores(self, choices: Sequence[Choice]) -> Tensor:
        """One estimate for each choice, float32."""
        share = max(1, AT_ONCE // self._full.numel())
        return torch.cat([self._scores(choices[at : at + share]) for at in range(0, len(choices), share)])

    def _scores(self, choices: Sequence[Choice]) -> Tensor:
        pairs = one_hot(choices, self._place)
        outputs = (self._full + (pairs.to(self._changes) @ self._changes).view(len(choices), *self._full.shape)).log_softmax(2)
        ruled_out = self._full == -torch.inf
        lost = (self._full.exp() * (self._full - outputs)).masked_fill(ruled_out, 0)
        return -lost.sum(2).mean(1).cpu()


def one_hot(choices: Sequence[Choice], place: Mapping[tuple[int, int], int]) -> Tensor:
    """Choices as rows of ones and zeros, float32: a one at the place of each layer's bits."""
    at = [[place[pair] for pair in enumerate(choice)] for choice in choices]
    return torch.zeros(len(choices), len(place)).scatter_(1, torch.tensor(at, dtype=torch.int64).view(len(choices), -1), 1)
