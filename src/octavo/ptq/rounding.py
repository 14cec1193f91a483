"""The level that a weight takes when it freezes: the nearest one, or the one that is best once the
bits of its code count too.

Let ``c`` be the curvature of a weight, which is what its squared error costs the outputs while the
weights that are still free compensate: ``M_ii^2`` in GPTQ, ``1 / [H^-1]_jj`` in OBQ, ``H_jj`` in
coordinate descent. With ``price``, the squared output error that one bit is worth, the level is::

    argmin_q  c (w - q)^2 + price * bits(q)  =  argmin_q  (w - q)^2 + price / c * bits(q)

Without a price this is the nearest level. Either way the weights that are still free compensate for
``w - q``: they make up for a cheaper level as for any other error.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.formats.codebook import edges

__all__ = ["Prices", "Rounding", "bits_of_codes"]

BLOCK = 16  # columns that are rounded at a time: each takes memory for all levels


@dataclass(frozen=True, eq=False)
class Prices:
    """What the codes of a layer cost.

    Attributes:
        bits: the bits that each code takes, (levels,).
        price: the squared output error that one bit is worth in each row, float64,
            (problems, rows, 1): all columns of a row have one price.

    """

    bits: Tensor
    price: Tensor

    def of(self, codes: Tensor) -> Tensor:
        """Return what each row of codes, (problems, rows, columns), costs: (problems, rows)."""
        return self.price.squeeze(2) * self.bits[codes.int()].sum(2)

    def times(self, factor: float) -> "Prices":
        """Return prices that are so many times as high."""
        return replace(self, price=factor * self.price)

    def in_units(self, scale: Tensor) -> "Prices":
        """Return the prices of weights that are divided by the scale of their row,
        (problems, n * rows, 1) for ``n`` candidates of each row.
        """
        candidates = scale.shape[1] // self.price.shape[1]
        return replace(self, price=self.price.repeat(1, candidates, 1) / scale.square())


def bits_of_codes(codes: Tensor, levels: int) -> Tensor:
    """Return the bits that each code takes where an entropy coder has one table for all of
    ``codes``: ``-log2 p``, float64, (levels,).

    Half a code is added to each count (Krichevsky and Trofimov), so that an unused code has a price
    too.
    """
    counts = torch.bincount(codes.flatten().int(), minlength=levels).double() + 0.5
    return (counts.sum() / counts).log2()


@dataclass(frozen=True, eq=False)
class Rounding:
    """The levels that weights are rounded to.

    Attributes:
        levels: ascending, in units of the scale.
        scale: the scale of each weight, the shape of the weights; None if all are 1.
        prices: what codes cost; None if only the error counts.

    """

    levels: Tensor
    scale: Tensor | None = None
    prices: Prices | None = None

    @property
    def zero(self) -> int:
        """The code of the middle level, which is zero."""
        return len(self.levels) // 2

    def __call__(
        self, weight: Tensor, curvature: Tensor | float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """Return the codes of weights, int64.

        Args:
            weight: the weights.
            curvature: what the squared error of each weight costs, broadcast to the weights; it
                counts only if codes cost anything.
            out: the tensor that the codes are written to.

        """
        in_units = weight if self.scale is None else weight / self.scale
        if self.prices is None:
            return torch.bucketize(in_units, self._boundaries, right=True, out=out)
        worth = self.prices.price / curvature  # float64: moments may be near float32's largest
        worth = worth if self.scale is None else worth / self.scale.square()
        by_level = (-1, *[1] * weight.dim())
        cost = (in_units - self.levels.view(by_level)).square_()  # (levels, *weight)
        cost.addcmul_(self.prices.bits.view(by_level), worth.to(cost.dtype))
        return torch.argmin(cost, 0, out=out)

    def each(self, weight: Tensor, curvature: Tensor) -> Tensor:
        """Round weights (problems, rows, columns), each by itself: uint8."""
        parts = zip(weight.split(BLOCK, 2), curvature.split(BLOCK, 2), strict=True)
        return torch.cat([self(w.contiguous(), c).to(torch.uint8) for w, c in parts], 2)

    def level(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the levels that codes, int64, stand for."""
        level = torch.take(self.levels, codes, out=out)
        return level if self.scale is None else level.mul_(self.scale)

    def mapped(self, pick: Callable[[Tensor], Tensor]) -> "Rounding":
        """Return the rounding of the weights that ``pick`` picks."""
        scale = self.scale if self.scale is None else pick(self.scale)
        prices = self.prices and replace(self.prices, price=pick(self.prices.price))
        return replace(self, scale=scale, prices=prices)

    def at(self, rows: Tensor) -> "Rounding":
        """Return the rounding of some rows of weights (problems, rows, columns)."""
        return self.mapped(lambda one: one[:, rows])

    def by_row(self, rows: Tensor) -> "Rounding":
        """Return the rounding of weights (rows, columns), for some rows of all problems in turn."""
        return self.mapped(lambda one: one.flatten(0, 1)[rows])

    def picked(self, index: Tensor) -> "Rounding":
        """Return the rounding of the columns that ``index`` picks for each row, (..., columns)."""
        return self if self.scale is None else replace(self, scale=self.scale.gather(-1, index))

    def by_column(self, index: Tensor) -> "list[Rounding]":
        """Return the rounding (problems, rows) of each column, in the order that ``index``,
        (problems, rows, columns), picks them.
        """
        every = replace(self, scale=None).mapped(lambda price: price.squeeze(-1))
        scale = self.picked(index).scale
        if scale is None:
            return [every] * index.shape[2]
        return [replace(every, scale=one) for one in scale.permute(2, 0, 1).contiguous()]

    def to(self, dtype: torch.dtype) -> "Rounding":
        """Return the same rounding of weights of another type."""
        scale = None if self.scale is None else self.scale.to(dtype)
        prices = self.prices and replace(self.prices, bits=self.prices.bits.to(dtype))
        return Rounding(self.levels.to(dtype), scale, prices)

    @functools.cached_property
    def _boundaries(self) -> Tensor:
        return edges(self.levels)
