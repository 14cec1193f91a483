"""Sums of two powers of two as a codebook, and the fit of its largest exponent.

The idea is APoT's (Li et al., ICLR 2020, arXiv 1909.13144). Every level is ``2^max_exponent`` times
a sum or a difference of two powers of two, so that a product still takes two shifts and one
addition. A codebook of ``b`` bits has zero and, with either sign, the first ``2^(b-1) - 1`` of
these numbers that have at most ``b - 3`` bits behind the leading one: at 5 bits 1, 2, ..., 8, 10,
12, 14, 16, 20, 24, 28; from 6 bits on also 9 and 15, never 11 or 13. They are evenly spaced near
zero and nearly logarithmic further out.

These levels are octavo's own. APoT adds up two interleaved sets of positive powers, which leaves
more squared error at every width (benchmarks/apot.py), and it learns a float scale by gradient,
where octavo's is a power of two.
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
    read_per,
    rows_by_exponent,
)
from octavo.formats.width import Width, bits_of

__all__ = ["AdditivePowers", "additive_powers"]

# The exponent of float32's smallest normal number. The smallest level of the scale 2^LOWEST, 2^-15
# times as large at 8 bits, is subnormal but exact.
LOWEST = -126


@dataclass(frozen=True, eq=False)
class AdditivePowers:
    """The levels of one quantized tensor: sums and differences of two powers of two.

    Attributes:
        bits: nominal bits, 5 to 8: ``2^bits - 1`` levels.
        max_exponent: the exponent of the larger part of the largest level: an integer scalar
            tensor, or one value per output channel, shape ``(channels,)``.

    Raises:
        PlanError: bits out of range, or a ``max_exponent`` that is no integer scalar or vector.

    """

    bits: int
    max_exponent: Tensor
    lowest_max_exponent: ClassVar[int] = LOWEST

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bits_of(self.bits, "apot"))
        check_exponent(self.max_exponent)

    @property
    def width(self) -> Width:
        """The bits together with the name of this kind of codebook."""
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
        """Return the ascending float32 levels of ``max_exponent`` 0, shape ``(2^bits - 1,)``.

        The levels of the tensor are these times ``scale``.
        """
        magnitudes = torch.tensor(
            _magnitudes(self.bits)[:-1], dtype=torch.float32, device=self.max_exponent.device
        )
        positive = magnitudes / _unit(self.bits)
        return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])

    def scale(self) -> Tensor:
        """Return ``2^max_exponent``: float32, shape of ``max_exponent``."""
        return power(self.max_exponent)

    def levels(self) -> Tensor:
        """Return the ascending float32 levels: shape ``(2^bits - 1,)``, or
        ``(channels, 2^bits - 1)`` where ``max_exponent`` is per channel.
        """
        return self.unit_levels() * self.scale()[..., None]

    def project(self, weight: Tensor) -> Tensor:
        """Round each weight to the nearest level, of two the larger in magnitude: float32, shape of
        ``weight``.
        """
        level = self.unit_levels().to(weight.device)[self._codes(weight)]
        return level.mul_(_row_scale(self, weight)).view(weight.shape)

    def encode(self, weight: Tensor) -> Tensor:
        """Return uint8 codes, the index of each weight's level, shape of ``weight``."""
        return self._codes(weight).to(torch.uint8).view(weight.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the levels that ``codes`` stand for: float32, shape of ``codes``, exact.

        Raises:
            PlanError: a code beyond the last level.

        """
        return decoded(self, codes)

    def _codes(self, weight: Tensor) -> Tensor:
        """Return codes as a matrix with a row for each exponent, int32."""
        in_units = rows_by_exponent(weight, self.max_exponent) / _row_scale(self, weight)
        boundaries = edges(self.unit_levels()).to(weight.device)
        return torch.bucketize(in_units, boundaries, right=True, out_int32=True)


def _row_scale(codebook: AdditivePowers, weight: Tensor) -> Tensor:
    """Return the scale of each row, on the weight's device: (rows, 1)."""
    return codebook.scale().to(weight.device).view(-1, 1)


def additive_powers(
    weight: Tensor,
    bits: int | Width,
    *,
    fit: Fit = "max",
    per: Per = "tensor",
    importance: Tensor | None = None,
    name: str = "weight",
) -> AdditivePowers:
    """Choose the codebook for ``weight``, that is, its largest exponent.

    Args:
        weight: floats of any shape, output channels first. A tensor or a channel of zeros is legal
            and gets the exponent 0.
        bits: nominal bits, 5 to 8.
        fit: ``"max"`` is the least exponent whose largest level no weight exceeds; ``"mse"`` is the
            integer exponent of least squared error.
        per: one exponent for the ``"tensor"``, or one for each output ``"channel"``.
        importance: non-negative weights of the squared error, broadcastable to ``weight``; they
            count only with ``fit="mse"``.
        name: the name of the tensor, for errors.

    Raises:
        PlanError: bits out of range, an unknown ``fit`` or ``per``, or a weight that is NaN or
            infinite.

    """
    bits = bits_of(bits, "apot")
    per = read_per(per, name)
    rows = checked_rows(weight, fit, per, name)
    exponent = _unclipped_exponent(rows, bits)
    if fit == "mse" and rows.numel():
        share = None if importance is None else importance.expand_as(weight).reshape(rows.shape)
        exponent = least_error_exponent(
            rows, lambda one: AdditivePowers(bits, one), exponent, share
        )
    return AdditivePowers(bits, exponent if per == "channel" else exponent[0])


def _unclipped_exponent(rows: Tensor, bits: int) -> Tensor:
    """Return the least exponent whose largest level no weight of the row exceeds, int32.

    An exponent above that gains no level within reach of the weights.
    """
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2^exponent, 1/2 <= mantissa
    largest_unit_level = _magnitudes(bits)[-2] / _unit(bits)
    least = exponent - (2 * mantissa <= largest_unit_level).int()
    return torch.where(largest > 0, least.clamp(LOWEST, LARGEST), 0).to(torch.int32)


@functools.cache
def _magnitudes(bits: int) -> tuple[int, ...]:
    """Return the positive levels as integers, ascending, and the one that would come next."""
    count = 1 << (bits - 1)
    magnitudes: list[int] = []
    exponent = 0
    while len(magnitudes) < count:
        octave = {2**exponent}  # the levels from one power of two up to the next
        for low in range(max(0, exponent - bits + 3), exponent):
            octave |= {2**exponent + 2**low, 2 ** (exponent + 1) - 2**low}
        magnitudes += sorted(octave)
        exponent += 1
    return tuple(magnitudes[:count])


def _unit(bits: int) -> int:
    """Return the larger part of the largest level as an integer: a power of two."""
    return 1 << (_magnitudes(bits)[-2].bit_length() - 1)
