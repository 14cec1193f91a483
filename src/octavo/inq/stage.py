"""The stage of INQ that the user's loop gets: a portion has just been frozen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["FrozenMasks", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One stage of INQ: a portion has just been frozen. Retrain the rest, then ask for the next.

    Attributes:
        index: 0 for the first stage.
        portion: the share of each layer's weights that is frozen now; pruned weights, frozen at
            zero from the start, do not count.
        last: True if every weight is frozen; norms and biases may still train.
        frozen: by layer name, the mask of the frozen weights: bool, the weight's shape.

    """

    index: int
    portion: float
    last: bool
    frozen: Mapping[str, Tensor]


class FrozenMasks(Mapping[str, Tensor]):
    """The masks of frozen weights by layer name, as they were when this was made. Each is copied
    when it is asked for, so that nobody changes a stage through it.

    Args:
        masks: the masks of the layers now.

    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = {name: mask.clone() for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        frozen = sum(int(mask.count_nonzero()) for mask in self._masks.values())
        weights = sum(mask.numel() for mask in self._masks.values())
        return f"FrozenMasks({len(self)} layers, {frozen:,} of {weights:,} weights)"
