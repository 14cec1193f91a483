"""A model of the environment that costs no evaluations: the outputs change by the sum of what each
layer alone changes.

The losses of single layers do not add up, but to first order the changes of the outputs do, signs
and all: layers whose errors cancel are told from layers whose errors reinforce each other. So the
divergence of the summed outputs ranks plans far better than the sum of the divergences does. (Ours;
DNQ published nothing of the kind.)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.dnq.space import Choice
from octavo.network.outputs import Part

__all__ = ["OutputSum", "one_hot"]

AT_ONCE = 1 << 22  # outputs that are estimated at a time: choices by rows by classes


class OutputSum:
    """Estimates scores of choices: minus what their outputs lose of full precision.

    Args:
        full: the outputs in full precision.
        alone: by layer and bits, the rows of each part where that layer alone is quantized.

    """

    def __init__(
        self, full: Sequence[Part], alone: Mapping[tuple[int, int], Sequence[Tensor]]
    ) -> None:
        self._full = full
        self._place = {pair: at for at, pair in enumerate(alone)}
        changes = [
            [own - part.rows for own in owns]
            for part, *owns in zip(full, *alone.values(), strict=True)
        ]
        self._changes = [
            torch.stack(some).nan_to_num_(0.0).flatten(1) for some in changes
        ]  # NaN: of classes ruled out

    def scores(self, choices: Sequence[Choice]) -> Tensor:
        """One estimate for each choice, float32."""
        share = max(1, AT_ONCE // max(part.rows.numel() for part in self._full))
        return torch.cat(
            [self._scores(choices[at : at + share]) for at in range(0, len(choices), share)]
        )

    def _scores(self, choices: Sequence[Choice]) -> Tensor:
        pairs = one_hot(choices, self._place)
        lost = [
            _lost(part, (pairs.to(changes) @ changes).view(len(choices), *part.rows.shape))
            for part, changes in zip(self._full, self._changes, strict=True)
        ]
        return -torch.stack(lost).sum(0).cpu()


def _lost(part: Part, change: Tensor) -> Tensor:
    """What outputs that change so, (choices, rows, features), lose."""
    if not part.classes:
        return change.square().sum((1, 2)) / part.unit()
    outputs, ruled_out = (part.rows + change).log_softmax(2), part.rows == -torch.inf
    return (part.rows.exp() * (part.rows - outputs)).masked_fill(ruled_out, 0).sum(2).mean(1)


def one_hot(choices: Sequence[Choice], place: Mapping[tuple[int, int], int]) -> Tensor:
    """Choices as rows of ones and zeros, float32: a one at the place of each layer's bits."""
    at = [[place[pair] for pair in enumerate(choice)] for choice in choices]
    return torch.zeros(len(choices), len(place)).scatter_(
        1, torch.tensor(at, dtype=torch.int64).view(len(choices), -1), 1
    )
