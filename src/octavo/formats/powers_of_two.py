"""Powers of two as a codebook: the levels of INQ (arXiv 1702.03044, section 2.1), which weight
takes which, and the choice of n1.

A codebook of ``b`` bits has the levels ``{0, ±2^n2, …, ±2^n1}`` with ``n2 = n1 + 1 - 2^(b-2)``. A
code is the index of a level in ascending order, so the middle code, ``2^(b-2)``, is zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.formats.codebook import (
    BLOCK,
    LARGEST,
    SMALLEST,
    Fit,
    Per,
    blocks,
    check_exponent,
    checked_rows,
    decoded,
    least_error_exponent,
    power,
    rows_by_exponent,
)
from octavo.formats.width import Width, bits_of

__all__ = ["BLOCK", "Fit", "Per", "PowerOfTwo", "power_of_two"]

SIGN, MAGNITUDE, EXPONENT = -(1 << 31), (1 << 31) - 1, 0xFF << 23  # of float32's bits
STEP, HALF = 1 << 23, 1 << 22  # one step of the exponent, half a mantissa
SMALL, LIFT = (
    -60,
    100,
)  # exponents under SMALL are lifted by LIFT while rounding, away from subnormal numbers


@dataclass(frozen=True, eq=False)
class PowerOfTwo:
    """The levels of one quantized tensor.

    Attributes:
        bits: nominal bits, 2 to 8: ``2^(bits-2)`` exponents, ``2^(bits-1) + 1`` levels.
        top: the largest exponent n1, an integer tensor: a scalar, or one value per output channel,
            shape ``(channels,)``.

    """

    bits: int
    max_exponent: Tensor
    lowest: ClassVar[int] = SMALLEST

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", bits_of(self.bits, "power_of_two"))
        check_exponent(self.max_exponent)

    @property
    def width(self) -> Width:
        """The width that this codebook belongs to."""
        return Width(self.bits)

    @property
    def exponents(self) -> int:
        """Number of exponents."""
        return 1 << (self.bits - 2)

    @property
    def zero(self) -> int:
        """The code of zero."""
        return self.exponents

    @property
    def edge(self) -> float:
        """The outer edge of the largest level's cell, in units of that level (eq. 4)."""
        return 1.5

    def unit_levels(self) -> Tensor:
        """Ascending float32 levels for n1 = 0; a tensor's levels are these times ``scale``: shape
        ``(2^(bits-1)+1,)``.
        """
        power = np.ldexp(np.float32(1), np.arange(1 - self.exponents, 1, dtype=np.int32))
        return torch.from_numpy(np.concatenate([-power[::-1], np.zeros(1, np.float32), power])).to(
            self.max_exponent.device
        )

    def scale(self) -> Tensor:
        """``2^n1``: float32, shape of ``max_exponent``."""
        return power(self.max_exponent)

    def levels(self) -> Tensor:
        """Ascending float32 levels: shape ``(2^(bits-1)+1,)``, or ``(channels, 2^(bits-1)+1)``
        where ``max_exponent`` is per channel.
        """
        return self.unit_levels() * self.scale()[..., None]

    def project(self, weight: Tensor) -> Tensor:
        """Each weight's level (eq. 4, saturating from ``1.5 * 2^n1`` on), float32, shape of
        ``weight``: one pass over memory.

        Rounding works on the float's bits: adding half a mantissa and clearing it rounds to the
        nearest power, ties up.
        """
        source = rows_by_exponent(weight, self.max_exponent)
        result = torch.empty_like(source)
        top = self.max_exponent.to(weight.device, torch.int32).reshape(-1, 1)
        small = top < SMALL
        lift = torch.where(small, 2.0**LIFT, 1.0).float() if bool(small.any()) else None
        high = (top + LIFT * small.int() + 127) * STEP
        low = high - (self.exponents - 1) * STEP
        scratch = torch.empty(
            2, min(BLOCK, source.numel()), dtype=torch.int32, device=weight.device
        )
        for rows, block in blocks(source):
            level = result[block]
            lifted = source[block] if lift is None else source[block] * lift[rows]
            room = scratch[:, : level.numel()].view(2, *level.shape)
            _round(
                lifted.view(torch.int32),
                low[rows],
                high[rows],
                out=level.view(torch.int32),
                scratch=room,
            )
            if lift is not None:
                level /= lift[rows]
        return result.view(weight.shape)

    def encode(self, weight: Tensor) -> Tensor:
        """uint8 codes, the index of each weight's level, shape of ``weight``."""
        level = rows_by_exponent(self.project(weight), self.max_exponent)
        lowest = self.max_exponent.to(weight.device).reshape(-1, 1) - self.exponents
        rank = torch.frexp(level).exponent - 1 - lowest
        return (self.exponents + rank * level.sign()).to(torch.uint8).view(weight.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels that ``codes`` stand for: float32, shape of ``codes``, exact. A code beyond
        the last level is an error.
        """
        return decoded(self, codes)


def power_of_two(
    weight: Tensor,
    bits: int | Width,
    *,
    fit: Fit = "max",
    per: Per = "layer",
    importance: Tensor | None = None,
    name: str = "weight",
) -> PowerOfTwo:
    """The codebook for ``weight``: the choice of its largest exponent n1.

    Args:
        weight: floats of any shape, output channels first. An all-zero tensor or channel is legal
            and gets n1 = 0.
        bits: nominal bits, 2 to 8.
        fit: ``"max"`` is the paper's ``n1 = floor(log2(4/3 max|w|))``; ``"mse"`` the integer n1 of
            least squared error.
        per: one n1 for the ``"layer"`` or one per output ``"channel"``.
        importance: non-negative weights of the squared error, broadcastable to ``weight``; only
            with ``fit="mse"``.
        name: what errors call the tensor.

    Raises:
        PlanError: bits out of range, an unknown ``fit`` or ``per``, or a weight that is NaN or
            infinite.

    """
    bits = bits_of(bits, "power_of_two")
    rows = checked_rows(weight, fit, per, name)
    top = _paper_exponent(rows)
    if fit == "mse" and rows.numel():
        share = None if importance is None else importance.expand_as(weight).reshape(rows.shape)
        top = least_error_exponent(rows, lambda top: PowerOfTwo(bits, top), top, share)
    return PowerOfTwo(bits, top if per == "channel" else top[0])


def _round(weight: Tensor, low: Tensor, high: Tensor, *, out: Tensor, scratch: Tensor) -> None:
    """Round floats to signed powers from ``low`` to ``high``, or to zero under half of ``low``; all
    given as their bits, int32.

    Comparisons yield 0 or 1 in int32 to multiply with: masks in bool would cost ten times as much.
    """
    power, keep = scratch
    torch.bitwise_and(weight, MAGNITUDE, out=power)
    torch.ge(power, low - STEP, out=keep)
    torch.maximum(power, low, out=power)
    torch.minimum(power, high, out=power)
    power += HALF
    power &= EXPONENT
    torch.bitwise_and(weight, SIGN, out=out)
    out |= power
    out *= keep


def _paper_exponent(rows: Tensor) -> Tensor:
    """``floor(log2(4/3 max|w|))`` of each row: the exponent of the power nearest to the maximum, a
    tie going up.
    """
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    mantissa, exponent = torch.frexp(largest)
    top = exponent - (mantissa < 0.75).int()
    return torch.where(largest > 0, top.clamp(SMALLEST, LARGEST), 0).to(torch.int32)
