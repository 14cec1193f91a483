"""One pass over samples in random order, for tasks that make batches from numbers of samples."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.runs.task import Batch

__all__ = ["Shuffled"]


@dataclass(frozen=True)
class Shuffled:
    """An epoch of ``len()`` batches; the last may be smaller. Its order comes from torch's global
    generator.

    Attributes:
        count: the number of samples.
        batch: samples in a batch.
        make: makes a batch from the numbers of its samples, int64.

    """

    count: int
    batch: int
    make: Callable[[Tensor], Batch]

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, torch.randperm(self.count).split(self.batch))
