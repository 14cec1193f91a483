"""Powers of two as a codebook: the levels, the rounding, and the fit of the largest exponent
(INQ, arXiv 1702.03044, section 2.1).

A codebook of ``b`` bits has the levels ``{0, ±2^n2, ..., ±2^n1}`` with ``n2 = n1 + 1 - 2^(b-2)``,
where ``n1`` is ``max_exponent``. A code is the index of a level in ascending order, so the middle
code, ``2^(b-2)``, is zero.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo._deprecated import renamed_arguments, warn_renamed
from octavo.formats.codebook import BLOCK, SMALLEST, Reach, blocks, decoded, power
from octavo.formats.fitting import Fit, Per, fitted, read_per
from octavo.formats.rows import check_exponent, from_rows, rows_by_exponent
from octavo.formats.width import Width, bits_of

__all__ = ["BLOCK", "Fit", "Per", "PowerOfTwo", "power_of_two"]

# The bits of a float that its rounding needs: the sign and the exponent, and the first bit of the
# mantissa.
POWER = {torch.float32: -(1 << 23), torch.float64: -(1 << 52)}
FIRST_BIT = {torch.float32: 1 << 22, torch.float64: 1 << 51}
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
LEAST_NORMAL = -126  # the exponent of float32's smallest normal number


def _smallest_and_factor_of(codebook: "PowerOfTwo") -> tuple[Tensor, Tensor]:
    """Return the smallest positive level of each row, ``2^n2``, and ``4/3`` of its inverse: both
    (rows, 1), float64 where half of the former or its inverse is no normal number in float32.
    """
    exponent = codebook.max_exponent.reshape(-1, 1)
    smallest = exponent + 1 - codebook.zero  # n2
    is_extreme = (smallest <= LEAST_NORMAL) | (smallest >= -LEAST_NORMAL)
    dtype = torch.float64 if bool(is_extreme.any()) else torch.float32
    levels = power(exponent).to(dtype) * 2.0 ** (1 - codebook.zero)
    return levels, (4 / 3) / levels


@dataclass(frozen=True, eq=False, init=False)
class PowerOfTwo:
    """The levels of one quantized tensor: zero and signed powers of two.

    Attributes:
        bits: nominal bits, 2 to 8: ``2^(bits-2)`` exponents, ``2^(bits-1) + 1`` levels.
        max_exponent: the largest exponent, ``n1`` in INQ: an integer scalar tensor, one value per
            output channel, shape ``(channels,)``, or ``(channels, groups)``.
        group_size: the inputs of a channel that share an exponent; 0 if there are no groups.

    Raises:
        PlanError: bits out of range, or a ``max_exponent`` that is no integer tensor of such a
            shape.

    """

    bits: int
    max_exponent: Tensor
    group_size: int
    lowest_max_exponent: ClassVar[int] = SMALLEST
    _smallest_and_factor = functools.cached_property(_smallest_and_factor_of)

    @renamed_arguments(top="max_exponent")
    def __init__(self, bits: int | Width, max_exponent: Tensor, group_size: int = 0) -> None:
        check_exponent(max_exponent, group_size)
        object.__setattr__(self, "bits", bits_of(bits, "power_of_two"))
        object.__setattr__(self, "max_exponent", max_exponent)
        object.__setattr__(self, "group_size", group_size)

    @property
    def top(self) -> Tensor:
        """The deprecated name of ``max_exponent``."""
        warn_renamed("PowerOfTwo.top", "PowerOfTwo.max_exponent")
        return self.max_exponent

    @property
    def width(self) -> Width:
        """The bits together with the name of this kind of codebook."""
        return Width(self.bits)

    @property
    def zero(self) -> int:
        """The code of zero: the number of exponents, ``2^(bits-2)``, because the codes of as many
        negative levels come first.
        """
        return 1 << (self.bits - 2)

    @property
    def reach(self) -> Reach:
        """The outer edge of the largest level's cell, in units of that level (INQ, eq. 4), and the
        largest float32 within.
        """
        return Reach(1.5, 1.5 - 2.0**-23)

    def unit_levels(self) -> Tensor:
        """Return the ascending float32 levels of ``max_exponent`` 0, shape ``(2^(bits-1)+1,)``.

        The levels of the tensor are these times ``scale``.
        """
        powers = np.ldexp(np.float32(1), np.arange(1 - self.zero, 1, dtype=np.int32))
        levels = np.concatenate([-powers[::-1], np.zeros(1, np.float32), powers])
        return torch.from_numpy(levels).to(self.max_exponent.device)

    def scale(self) -> Tensor:
        """Return ``2^max_exponent``: float32, shape of ``max_exponent``."""
        return power(self.max_exponent)

    def levels(self) -> Tensor:
        """Return the ascending float32 levels: shape ``(2^(bits-1)+1,)``, or
        ``(channels, 2^(bits-1)+1)`` where ``max_exponent`` is per channel, and one dimension more
        where it is per group.
        """
        return self.unit_levels() * self.scale()[..., None]

    def project(self, weight: Tensor) -> Tensor:
        """Round each weight to the nearest level (INQ, eq. 4): float32, shape of ``weight``.

        Weights from ``1.5 * 2^max_exponent`` on saturate, and so does NaN, which is not looked for.
        It takes six operations; on a CPU, six for each block of weights, which stays in the cache
        meanwhile.
        """
        source = rows_by_exponent(weight, self.max_exponent, self.group_size)
        result = torch.empty_like(source)
        smallest, factor = (row.to(weight.device) for row in self._smallest_and_factor)
        zero = smallest.new_zeros(1)
        for rows, block in blocks(source):
            units = _in_units(source[block], factor[rows], self.zero)
            # units * smallest, but 0 instead of -0
            torch.addcmul(zero, units, smallest[rows], out=result[block])
        return from_rows(result, weight.shape, self.group_size)

    def encode(self, weight: Tensor) -> Tensor:
        """Return uint8 codes, the index of each weight's level, shape of ``weight``; NaN saturates,
        as in :meth:`project`.
        """
        source = rows_by_exponent(weight, self.max_exponent, self.group_size)
        result = torch.empty_like(source, dtype=torch.uint8)
        factor = self._smallest_and_factor[1].to(weight.device)
        for rows, block in blocks(source):
            units = _in_units(source[block], factor[rows], self.zero)
            rank = torch.frexp(units).exponent  # k + 1 for 2^k, and 0 for 0
            result[block] = torch.copysign(rank, units).add_(self.zero)
        return from_rows(result, weight.shape, self.group_size)

    def decode(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the levels that ``codes`` stand for: float32, shape of ``codes``, exact; in the
        memory of ``out`` if it is given, a contiguous tensor of this type and shape.

        Raises:
            PlanError: a code beyond the last level.

        """
        return decoded(self, codes, out)


def power_of_two(
    weight: Tensor,
    bits: int | Width,
    *,
    fit: Fit = "max",
    per: Per = "tensor",
    importance: Tensor | None = None,
    name: str = "weight",
) -> PowerOfTwo:
    """Choose the codebook for ``weight``, that is, its largest exponent.

    Args:
        weight: floats of any shape, output channels first. A tensor or a channel of zeros is legal
            and gets the exponent 0.
        bits: nominal bits, 2 to 8.
        fit: ``"max"`` is the paper's ``n1 = floor(log2(4/3 max|w|))``; ``"mse"`` is the integer
            exponent of least squared error.
        per: one exponent for the ``"tensor"``, one for each output ``"channel"``, or one for each
            32 inputs of a channel: ``("group", 32)``, or another number of at least 2. The inputs
            are counted in the order of memory; the last group of a channel may be shorter.
        importance: non-negative weights of the squared error, broadcastable to ``weight``; they
            count only with ``fit="mse"``.
        name: the name of the tensor, for errors.

    Raises:
        PlanError: bits out of range, an unknown ``fit`` or ``per``, or a weight that is NaN or
            infinite.

    """
    bits = bits_of(bits, "power_of_two")
    codebook = fitted(
        weight,
        functools.partial(PowerOfTwo, bits),
        fit=fit,
        per=read_per(per, name),
        importance=importance,
        name=name,
    )
    return PowerOfTwo(bits, codebook.max_exponent, codebook.group_size)


def _in_units(weight: Tensor, factor: Tensor, zero: int) -> Tensor:
    """Round to levels in units of the smallest positive one: 0 or ``±2^k``, shape of ``weight``,
    type of ``factor``.

    The edges lie at 0.5 and at ``1.5 * 2^k`` (INQ, eq. 4). First the weights are cut off behind the
    first bit of their mantissa, which moves none across an edge: in units, their magnitudes are
    ``2^k`` or ``1.5 * 2^k`` then. Times 4/3, the latter are ``2^(k+1)``, while the former stay
    below it. Rounding to integers, of a tie to the even one, takes what was below 0.5 to 0 and
    leaves the powers as they are. At last the mantissa is cut off.

    Args:
        weight: a row for each exponent.
        factor: 4/3 in these units, of each row.
        zero: the code of zero, which is the number of exponents.

    """
    dtype = factor.dtype
    weight = weight.to(dtype)
    kept = POWER[dtype] | FIRST_BIT[dtype]
    units = (weight.view(INTEGER[dtype]) & kept).view(dtype)
    units.mul_(factor).round_()
    units.view(INTEGER[dtype]).bitwise_and_(POWER[dtype])
    largest = 2.0 ** (zero - 1)
    return units.clamp_(-largest, largest)
