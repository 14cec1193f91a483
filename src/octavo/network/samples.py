"""The samples of a batch: how many there are, and a batch of some of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from octavo.network.forward import Inputs
from octavo.network.nested import leaves, mapped

__all__ = ["LEAST_SAMPLES", "rows_of", "sample_count"]

LEAST_SAMPLES = 64  # with fewer inputs, nothing is set aside


def sample_count(batch: Inputs) -> int | None:
    """Return the common size of dimension 0 of all tensors; None where there is none.

    None and booleans, such as options of the model, go with every sample.
    """
    sizes = set()
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.dim():
            sizes.add(len(leaf))
        elif leaf is not None and not isinstance(leaf, bool):
            return None
    return sizes.pop() if len(sizes) == 1 else None


def rows_of(batch: Inputs, rows: Sequence[int] | slice) -> Inputs:
    """Return these samples of a batch, as a batch."""

    def taken(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) else leaf

    chosen: Inputs = mapped(batch, taken)
    return chosen
