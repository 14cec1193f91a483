"""Sums of two powers of two as a codebook, after APoT (Li et al., ICLR 2020, arXiv 1909.13144), and
the choice of its scale.

Every level is ``2^n1`` times a sum or difference of two powers of two, so that a product still
takes two shifts and one addition. Of these numbers a codebook of ``b`` bits has zero and, of either
sign, the first ``2^(b-1) - 1`` with at most ``b - 3`` bits behind the leading one: at 5 bits 1, 2,
..., 8, 10, 12, 14, 16, 20, 24, 28; from 6 bits on also 9 and 15, never 11 or 13. They are evenly
spaced near zero and nearly logarithmic further out.

This choice of levels is ours. APoT adds up two interleaved sets of positive powers, which leaves
more squared error at every
width (benchmarks/apot.py), and learns a float scale by gradient, where ours is a power of two.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.formats.codebook import (
    LARGEST,
    Fit,
    Per,
    check_exponent,
    checked_rows,
    decoded,
    edges,
    least_error_exponent,
    power,
    rows_by_exponent,
)
from octavo.formats.width import Width, bits_of

__all__ = ["AdditivePowers", "additive_powers"]

LOWEST = (
    -126
)  # of float32's normal numbers; the smallest level, 2^-15 times that at 8 bits, is exact


@dataclass(frozen=True, eq=False)
class AdditivePowers:
    """The levels of one quantized tensor.

    Attributes:
        bits: nominal bits, 5 to 8: ``2^bits - 1`` levels.
        max_exponent: n1, the exponent of the largest level's larger part, an integer tensor: a scalar, or
            one value per output channel.

    """

    bits: int
    max_exponent: Tensor
    lowest: ClassVar[int] = LOWEST

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bits_of(self.bits, "apot"))
        check_exponent(self.max_exponent)

    @property
    def width(self) -> Width:
        """The width that this codebook belongs to."""
        return Width(self.bits, "apot")

    @property
    def zero(self) -> int:
        """The code of zero."""
        return (1 << (self.bits - 1)) - 1

    @property
    def edge(self) -> float:
        """The outer edge of the largest level's cell, in units of the scale: half-way to the level
        that would come next.
        """
        *_, largest, following = _magnitudes(self.bits)
        return (largest + following) / 2 / _unit(self.bits)

    def unit_levels(self) -> Tensor:
        """Ascending float32 levels for n1 = 0; a tensor's levels are these times ``scale``: shape
        ``(2^bits - 1,)``.
        """
        positive = torch.tensor(
            _magnitudes(self.bits)[:-1], dtype=torch.float32, device=self.max_exponent.device
        ) / _unit(self.bits)
        return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])

    def scale(self) -> Tensor:
        """``2^n1``: float32, shape of ``max_exponent``."""
        return power(self.max_exponent)

    def levels(self) -> Tensor:
        """Ascending float32 levels: shape ``(2^bits - 1,)``, or ``(channels, 2^bits - 1)`` where
        ``max_exponent`` is per channel.
        """
        return self.unit_levels() * self.scale()[..., None]

    def project(self, weight: Tensor) -> Tensor:
        """Each weight's nearest level, of two the larger in magnitude: float32, shape of
        ``weight``.
        """
        level = self.unit_levels().to(weight.device)[self._codes(weight)]
        return level.mul_(self.scale().to(weight.device).view(-1, 1)).view(weight.shape)

    def encode(self, weight: Tensor) -> Tensor:
        """uint8 codes, the index of each weight's level, shape of ``weight``."""
        return self._codes(weight).to(torch.uint8).view(weight.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels that ``codes`` stand for: float32, shape of ``codes``, exact. A code beyond
        the last level is an error.
        """
        return decoded(self, codes)

    def _codes(self, weight: Tensor) -> Tensor:
        """Codes as a matrix with a row for each exponent in ``max_exponent``, int32."""
        unit = rows_by_exponent(weight, self.max_exponent) / self.scale().to(weight.device).view(
            -1, 1
        )
        return torch.bucketize(
            unit, edges(self.unit_levels()).to(weight.device), right=True, out_int32=True
        )


def additive_powers(
    weight: Tensor,
    bits: int | Width,
    *,
    fit: Fit = "max",
    per: Per = "layer",
    importance: Tensor | None = None,
    name: str = "weight",
) -> AdditivePowers:
    """The codebook for ``weight``: the choice of its exponent n1.

    Args:
        weight: floats of any shape, output channels first. An all-zero tensor or channel is legal
            and gets n1 = 0.
        bits: nominal bits, 5 to 8.
        fit: ``"max"`` is the least n1 whose largest level no weight exceeds; ``"mse"`` the integer
            n1 of least squared error.
        per: one n1 for the ``"layer"`` or one per output ``"channel"``.
        importance: non-negative weights of the squared error, broadcastable to ``weight``; only
            with ``fit="mse"``.
        name: what errors call the tensor.

    Raises:
        PlanError: bits out of range, an unknown ``fit`` or ``per``, or a weight that is NaN or
            infinite.

    """
    bits = bits_of(bits, "apot")
    rows = checked_rows(weight, fit, per, name)
    top = _unclipped_exponent(rows, bits)
    if fit == "mse" and rows.numel():
        share = None if importance is None else importance.expand_as(weight).reshape(rows.shape)
        top = least_error_exponent(rows, lambda top: AdditivePowers(bits, top), top, share)
    return AdditivePowers(bits, top if per == "channel" else top[0])


def _unclipped_exponent(rows: Tensor, bits: int) -> Tensor:
    """The least n1 whose largest level no weight of a row exceeds; at twice that scale, no level is
    gained within reach.
    """
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    mantissa, exponent = torch.frexp(largest)
    top = exponent - (2 * mantissa <= _magnitudes(bits)[-2] / _unit(bits)).int()
    return torch.where(largest > 0, top.clamp(LOWEST, LARGEST), 0).to(torch.int32)


@functools.cache
def _magnitudes(bits: int) -> tuple[int, ...]:
    """The positive levels as integers, ascending, and the one that would come next."""
    found, exponent = list[int](), 0
    while len(found) < 1 << (bits - 1):
        finer = [2**e for e in range(max(0, exponent - bits + 3), exponent)]
        found += sorted(
            {
                2**exponent,
                *(2**exponent + low for low in finer),
                *(2 ** (exponent + 1) - low for low in finer),
            }
        )
        exponent += 1
    return tuple(found[: 1 << (bits - 1)])


def _unit(bits: int) -> int:
    """The larger part of the largest level as an integer: a power of two."""
    return 1 << (_magnitudes(bits)[-2].bit_length() - 1)
