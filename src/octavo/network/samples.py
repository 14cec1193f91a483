"""The samples of a batch: how many there are, and a batch of some of them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.network.forward import Inputs
from octavo.network.nested import leaves, mapped, named_tensors

__all__ = ["LEAST_SAMPLES", "alike", "in_fewer", "joined", "neighbours", "rows_of", "sample_count"]

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


def alike(batch: Inputs, other: Inputs) -> bool:
    """Tell if batches differ in nothing but their samples, so that they can be joined."""
    return _form(batch) == _form(other)


def joined(*batches: Inputs) -> Inputs:
    """Return the samples of batches that are alike, as one batch."""
    tensors = ([tensor for _, tensor in named_tensors(batch)] for batch in batches)
    columns = zip(*tensors, strict=True)

    def of_all(leaf: Any) -> Any:
        return torch.cat(next(columns)) if isinstance(leaf, Tensor) else leaf

    together: Inputs = mapped(batches[0], of_all)
    return together


def in_fewer(batches: Sequence[Inputs], most: int) -> list[Inputs]:
    """Join neighbouring batches that are alike, so many at a time that ``most`` would be left if
    all were alike. Up to ``most``, all stay as they are.
    """
    groups = neighbours(batches, -(-len(batches) // most))
    return [joined(*group) if len(group) > 1 else group[0] for group in groups]


def neighbours(batches: Iterable[Inputs], most: float = math.inf) -> list[list[Inputs]]:
    """Group neighbouring batches that are alike, up to ``most`` in a group. A batch that has no
    samples of its own is a group by itself.
    """
    groups: list[list[Inputs]] = []
    for batch in batches:
        last = groups[-1] if groups else []
        if 0 < len(last) < most and sample_count(batch) and alike(last[0], batch):
            last.append(batch)
        else:
            groups.append([batch])
    return groups


def _form(batch: Inputs) -> list[Any]:
    names = [name for name, _ in named_tensors(batch)]
    forms = [
        (leaf.shape[1:], leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves(batch)
    ]
    return [names, forms]
