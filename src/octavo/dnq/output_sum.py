"""The first model of the environment: outputs change by the sum of what each layer alone changes.

The losses of single layers do not add up, but to first order the changes of the outputs do, signs
and all: layers whose errors cancel are told from layers whose errors reinforce each other. So the
divergence of the summed outputs ranks choices far better than the sum of the divergences does.
(Ours; DNQ published nothing of the kind.) It costs no evaluations.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.dnq.space import Choice
from octavo.network.outputs import Part

__all__ = ["OutputSum", "one_hot"]

AT_ONCE = 1 << 22  # outputs that are estimated at a time: choices by rows by classes


class OutputSum:
    """A model that estimates objectives of choices: minus what their outputs lose of full
    precision.

    Args:
        full: the outputs in full precision.
        changed: by layer and action, the rows of each part where that layer alone is quantized.

    """

    def __init__(
        self, full: Sequence[Part], changed: Mapping[tuple[int, int], Sequence[Tensor]]
    ) -> None:
        self._full = full
        self._columns = {pair: column for column, pair in enumerate(changed)}
        self._changes = [
            _changes(part, [rows[index] for rows in changed.values()])
            for index, part in enumerate(full)
        ]

    def objectives(self, choices: Sequence[Choice]) -> Tensor:
        """Return one estimate for each choice, float32."""
        largest = max(part.rows.numel() for part in self._full)
        share = max(1, AT_ONCE // largest)
        shares = [choices[first : first + share] for first in range(0, len(choices), share)]
        return torch.cat([self._objectives(part) for part in shares])

    def _objectives(self, choices: Sequence[Choice]) -> Tensor:
        chosen = one_hot(choices, self._columns)  # (choices, pairs)
        losses = []
        for part, changes in zip(self._full, self._changes, strict=True):
            summed = chosen.to(changes) @ changes  # (choices, rows * features)
            losses.append(_lost(part, summed.view(len(choices), *part.rows.shape)))
        return -torch.stack(losses).sum(0).cpu()


def _changes(part: Part, changed: Sequence[Tensor]) -> Tensor:
    """Return what each layer and action changes of a part, (pairs, rows * features)."""
    changes = torch.stack([rows - part.rows for rows in changed])
    return changes.nan_to_num_(0.0).flatten(1)  # classes that are ruled out give NaN


def _lost(part: Part, change: Tensor) -> Tensor:
    """Return what outputs lose that change by ``change``, (choices, rows, features)."""
    if not part.classes:
        return change.square().sum((1, 2)) / part.unit()
    # The KL divergence, T^2 sum_c p_c (log p_c - log q_c), the mean over rows.
    log_q = (part.rows + change).log_softmax(2)
    divergence = part.rows.exp() * (part.rows - log_q)
    divergence = divergence.masked_fill(part.rows == -torch.inf, 0)
    return part.temperature**2 * divergence.sum(2).mean(1)


def one_hot(choices: Sequence[Choice], columns: Mapping[tuple[int, int], int]) -> Tensor:
    """Return choices as rows of ones and zeros, float32, (choices, pairs)."""
    ones = [[columns[pair] for pair in enumerate(choice)] for choice in choices]
    index = torch.tensor(ones, dtype=torch.int64).view(len(choices), -1)
    return torch.zeros(len(choices), len(columns), dtype=torch.float32).scatter_(1, index, 1)
