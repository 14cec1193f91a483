"""A codebook whose positive levels are a table of integers, times a power of two."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.formats.codebook import Reach, decoded, edges, power
from octavo.formats.rows import check_exponent, from_rows, rows_by_exponent
from octavo.formats.width import Width

__all__ = ["LOWEST", "LevelTable", "TableCodebook"]

# The exponent of float32's smallest normal number. The smallest level of the scale 2^LOWEST, 2^-17
# times as large in FP8, is subnormal but exact.
LOWEST = -126


@dataclass(frozen=True)
class LevelTable:
    """The positive levels that a width has, as exact integers.

    Attributes:
        width: the width.
        magnitudes: the positive levels in units of some power of two, ascending.
        following: the level that would come next; half-way to it, the largest level's cell ends.

    """

    width: Width
    magnitudes: tuple[int, ...]
    following: int

    @property
    def unit(self) -> int:
        """The largest power of two that is not above the largest level: the scale is this long."""
        return 1 << (self.magnitudes[-1].bit_length() - 1)


@dataclass(frozen=True, eq=False)
class TableCodebook:
    """The levels of one quantized tensor: zero and, with either sign, those of a table.

    Attributes:
        table: the positive levels.
        max_exponent: the exponent of the largest power of two that is not above the largest level:
            an integer scalar tensor, one value per output channel, or (channels, groups).
        group_size: the inputs of a channel that share an exponent; 0 if there are no groups.

    Raises:
        PlanError: a ``max_exponent`` that is no integer tensor of such a shape.

    """

    table: LevelTable
    max_exponent: Tensor
    group_size: int = 0
    lowest_max_exponent: ClassVar[int] = LOWEST

    def __post_init__(self) -> None:
        check_exponent(self.max_exponent, self.group_size)

    @property
    def width(self) -> Width:
        """The nominal bits together with the name of this kind of codebook."""
        return self.table.width

    @property
    def zero(self) -> int:
        """The code of zero."""
        return len(self.table.magnitudes)

    @property
    def reach(self) -> Reach:
        """The edge is half-way to the level that would come next; ``fit="max"`` lets no weight
        exceed the largest level.
        """
        largest = self.table.magnitudes[-1]
        edge = (largest + self.table.following) / 2
        return Reach(edge / self.table.unit, largest / self.table.unit)

    def unit_levels(self) -> Tensor:
        """Return the ascending float32 levels of ``max_exponent`` 0."""
        device = self.max_exponent.device
        positive = torch.tensor(self.table.magnitudes, dtype=torch.float32, device=device)
        positive /= self.table.unit
        return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])

    def levels(self) -> Tensor:
        """Return the ascending float32 levels, a row for each exponent: the shape of
        ``max_exponent``, and one dimension more.
        """
        return self.unit_levels() * power(self.max_exponent)[..., None]

    def project(self, weight: Tensor) -> Tensor:
        """Round each weight to the nearest level, of two the larger in magnitude: float32, shape of
        ``weight``.
        """
        level = self.unit_levels().to(weight.device)[self._codes(weight)]
        return from_rows(level.mul_(self._row_scale(weight)), weight.shape, self.group_size)

    def encode(self, weight: Tensor) -> Tensor:
        """Return uint8 codes, the index of each weight's level, shape of ``weight``."""
        return from_rows(self._codes(weight).to(torch.uint8), weight.shape, self.group_size)

    def decode(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the levels that ``codes`` stand for: float32, shape of ``codes``, exact; in the
        memory of ``out`` if it is given, a contiguous tensor of this type and shape.

        Raises:
            PlanError: a code beyond the last level.

        """
        return decoded(self, codes, out)

    def _codes(self, weight: Tensor) -> Tensor:
        """Return codes as a matrix with a row for each exponent, int32."""
        rows = rows_by_exponent(weight, self.max_exponent, self.group_size)
        boundaries = edges(self.unit_levels()).to(weight.device)
        return torch.bucketize(
            rows / self._row_scale(weight), boundaries, right=True, out_int32=True
        )

    def _row_scale(self, weight: Tensor) -> Tensor:
        """Return the scale of each row, on the weight's device: (rows, 1)."""
        return power(self.max_exponent).to(weight.device).view(-1, 1)
