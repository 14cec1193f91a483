"""The rounding of a weight to its nearest level when it freezes."""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.formats.codebook import edges

__all__ = ["Rounding"]


@dataclass(frozen=True, eq=False)
class Rounding:
    """The levels that weights are rounded to.

    Attributes:
        levels: ascending, in units of the scale.
        scale: the scale of each weight, the shape of the weights; None if all are 1.

    """

    levels: Tensor
    scale: Tensor | None = None

    @property
    def zero(self) -> int:
        """The code of the middle level, which is zero."""
        return len(self.levels) // 2

    def __call__(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the codes of weights, int64."""
        in_units = weight if self.scale is None else weight / self.scale
        return torch.bucketize(in_units, self._boundaries, right=True, out=out)

    def level(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the levels that codes, int64, stand for."""
        level = torch.take(self.levels, codes, out=out)
        return level if self.scale is None else level.mul_(self.scale)

    def at(self, rows: Tensor) -> "Rounding":
        """Return the rounding of some rows of weights (problems, rows, columns)."""
        return self if self.scale is None else replace(self, scale=self.scale[:, rows])

    def by_row(self, rows: Tensor) -> "Rounding":
        """Return the rounding of weights (rows, columns), for some rows of all problems in turn."""
        return self if self.scale is None else replace(self, scale=self.scale.flatten(0, 1)[rows])

    def picked_rows(self, rows: Tensor) -> "Rounding":
        """Return the rounding of some rows of weights, the first dimension."""
        return self if self.scale is None else replace(self, scale=self.scale[rows])

    def picked(self, index: Tensor) -> "Rounding":
        """Return the rounding of the columns that ``index`` picks for each row, (..., columns)."""
        return self if self.scale is None else replace(self, scale=self.scale.gather(-1, index))

    def by_column(self, index: Tensor) -> "list[Rounding]":
        """Return the rounding (problems, rows) of each column, in the order that ``index``,
        (problems, rows, columns), picks them.
        """
        scale = self.picked(index).scale
        if scale is None:
            return [self] * index.shape[2]
        return [replace(self, scale=one) for one in scale.permute(2, 0, 1).contiguous()]

    def to(self, dtype: torch.dtype) -> "Rounding":
        """Return the same rounding of weights of another type."""
        scale = None if self.scale is None else self.scale.to(dtype)
        return Rounding(self.levels.to(dtype), scale)

    @functools.cached_property
    def _boundaries(self) -> Tensor:
        return edges(self.levels)
