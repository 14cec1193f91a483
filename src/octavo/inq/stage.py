"""The stage of INQ that the user's loop gets: a portion has just been frozen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.inq.parametrization import is_frozen

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
    """The masks of frozen weights by layer name. Each is computed when it is asked for, from the
    marks that the layer keeps anyway, so that a stage takes no memory of its own.

    Args:
        marks: the marks of each layer: see ``octavo.inq.parametrization.FrozenWeights``.

    """

    def __init__(self, marks: Mapping[str, Tensor]) -> None:
        self._marks = dict(marks)

    def __getitem__(self, name: str) -> Tensor:
        return is_frozen(self._marks[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._marks)

    def __len__(self) -> int:
        return len(self._marks)
