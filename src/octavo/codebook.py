"""Powers of two as a codebook: the levels of INQ (arXiv 1702.03044, section 2.1), which weight takes which, and the choice of n1.

A codebook of ``b`` bits has the levels ``{0, ±2^n2, …, ±2^n1}`` with ``n2 = n1 + 1 - 2^(b-2)``. A code is the index of a
level in ascending order, so the middle code, ``2^(b-2)``, is zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from octavo.errors import PlanError

__all__ = ["Fit", "Per", "PowerOfTwo", "check_bits", "check_finite", "power_of_two"]

Fit = Literal["max", "mse"]
Per = Literal["layer", "channel"]

BLOCK = 1 << 16  # weights rounded at a time: their working set stays in a core's second-level cache
SIGN, MAGNITUDE, EXPONENT = -(1 << 31), (1 << 31) - 1, 0xFF << 23  # of float32's bits
STEP, HALF = 1 << 23, 1 << 22  # one step of the exponent, half a mantissa
SMALL, LIFT = -60, 100  # exponents under SMALL are lifted by LIFT while rounding, away from subnormal numbers
SMALLEST, LARGEST = -149, 127  # exponents of float32's smallest and largest power of two


@dataclass(frozen=True, eq=False)
class PowerOfTwo:
    """The levels of one quantized tensor.

    Attributes:
        bits: nominal bits, 2 to 8: ``2^(bits-2)`` exponents, ``2^(bits-1) + 1`` levels.
        top: the largest exponent n1, an integer tensor: a scalar, or one value per output channel, shape ``(channels,)``.

    """

    bits: int
    top: Tensor

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.top.dim() > 1 or self.top.is_floating_point():
            raise PlanError(f"top: expected an integer scalar or vector, got {self.top.dtype} {tuple(self.top.shape)}")

    @property
    def exponents(self) -> int:
        """Number of exponents, and the code of zero."""
        return 1 << (self.bits - 2)

    def unit_levels(self) -> Tensor:
        """Ascending float32 levels for n1 = 0; a tensor's levels are these times ``scale``: shape ``(2^(bits-1)+1,)``."""
        power = np.ldexp(np.float32(1), np.arange(1 - self.exponents, 1, dtype=np.int32))
        return torch.from_numpy(np.concatenate([-power[::-1], np.zeros(1, np.float32), power])).to(self.top.device)

    def scale(self) -> Tensor:
        """``2^n1``: float32, shape of ``top``."""
        scale = np.ldexp(np.float32(1), self.top.cpu().numpy().astype(np.int32))
        return torch.from_numpy(np.asarray(scale)).to(self.top.device)  # of a scalar top, numpy makes no array

    def levels(self) -> Tensor:
        """Ascending float32 levels: shape ``(2^(bits-1)+1,)``, or ``(channels, 2^(bits-1)+1)`` where ``top`` is per channel."""
        return self.unit_levels() * self.scale()[..., None]

    def project(self, weight: Tensor) -> Tensor:
        """Each weight's level (eq. 4, saturating from ``1.5 * 2^n1`` on), float32, shape of ``weight``: one pass over memory.

        Rounding works on the float's bits: adding half a mantissa and clearing it rounds to the nearest power, ties up.
        """
        source = self._rows(weight)
        result = torch.empty_like(source)
        top = self.top.to(weight.device, torch.int32).reshape(-1, 1)
        small = top < SMALL
        lift = torch.where(small, 2.0**LIFT, 1.0).float() if bool(small.any()) else None
        high = (top + LIFT * small.int() + 127) * STEP
        low = high - (self.exponents - 1) * STEP
        scratch = torch.empty(2, min(BLOCK, source.numel()), dtype=torch.int32, device=weight.device)
        for rows, block in _blocks(source):
            level = result[block]
            lifted = source[block] if lift is None else source[block] * lift[rows]
            room = scratch[:, : level.numel()].view(2, *level.shape)
            _round(lifted.view(torch.int32), low[rows], high[rows], out=level.view(torch.int32), scratch=room)
            if lift is not None:
                level /= lift[rows]
        return result.view(weight.shape)

    def encode(self, weight: Tensor) -> Tensor:
        """uint8 codes, the index of each weight's level, shape of ``weight``."""
        level = self._rows(self.project(weight))
        lowest = self.top.to(weight.device).reshape(-1, 1) - self.exponents
        rank = torch.frexp(level).exponent - 1 - lowest
        return (self.exponents + rank * level.sign()).to(torch.uint8).view(weight.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels that ``codes`` stand for: float32, shape of ``codes``, exact. A code beyond the last level is an error."""
        if codes.numel() and int(codes.max()) > 2 * self.exponents:
            raise PlanError(f"codes: expected at most {2 * self.exponents} at {self.bits} bits, got {int(codes.max())}")
        unit = self.unit_levels().to(codes.device)[self._rows(codes).int()]
        return unit.mul_(self.scale().to(codes.device).view(-1, 1)).view(codes.shape)

    def _rows(self, tensor: Tensor) -> Tensor:
        """``tensor`` as a contiguous matrix with a row for each exponent in ``top``."""
        if self.top.dim() and (not tensor.dim() or tensor.shape[0] != len(self.top)):
            raise PlanError(f"expected a tensor of {len(self.top)} output channels, got shape {tuple(tensor.shape)}")
        tensor = tensor.detach()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return _matrix(tensor, len(self.top) if self.top.dim() else 1).contiguous()


def power_of_two(
    weight: Tensor,
    bits: int,
    *,
    fit: Fit = "max",
    per: Per = "layer",
    importance: Tensor | None = None,
    name: str = "weight",
) -> PowerOfTwo:
    """The codebook for ``weight``: the choice of its largest exponent n1.

    Args:
        weight: floats of any shape, output channels first. An all-zero tensor or channel is legal and gets n1 = 0.
        bits: nominal bits, 2 to 8.
        fit: ``"max"`` is the paper's ``n1 = floor(log2(4/3 max|w|))``; ``"mse"`` the integer n1 of least squared error.
        per: one n1 for the ``"layer"`` or one per output ``"channel"``.
        importance: non-negative weights of the squared error, broadcastable to ``weight``; only with ``fit="mse"``.
        name: what errors call the tensor.

    Raises:
        PlanError: bits out of range, an unknown ``fit`` or ``per``, or a weight that is NaN or infinite.

    """
    check_bits(bits)
    if fit not in ("max", "mse") or per not in ("layer", "channel"):
        raise PlanError(f'{name}: expected fit "max" or "mse" and per "layer" or "channel", got fit={fit!r}, per={per!r}')
    values = weight.detach().float()
    check_finite(values, name)
    if per == "channel" and not weight.dim():
        raise PlanError(f"{name}: expected a tensor with output channels, got a scalar")
    rows = _matrix(values, weight.shape[0] if per == "channel" else 1)
    top = _paper_top(rows)
    if fit == "mse" and rows.numel():
        top = _least_error_top(rows, bits, top, None if importance is None else importance.expand_as(weight).reshape(rows.shape))
    return PowerOfTwo(bits, top if per == "channel" else top[0])


def check_bits(bits: int, name: str = "bits") -> None:
    """Raise PlanError unless ``bits`` is an integer from 2 to 8."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise PlanError(f"{name}: expected an integer from 2 to 8, got {bits!r}")


def check_finite(weight: Tensor, name: str) -> None:
    """Raise PlanError if a weight is NaN or infinite."""
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise PlanError(f"{name}: expected finite weights, got {bad} of {weight.numel()} that are NaN or infinite")


def _matrix(tensor: Tensor, rows: int) -> Tensor:
    """``tensor`` as a matrix of so many rows. (With no rows at all, reshape cannot tell the number of columns.)"""
    return tensor.reshape(rows, tensor.numel() // max(1, rows))


def _blocks(matrix: Tensor) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Cut a matrix into blocks of at most BLOCK elements, whole rows where they fit: (rows, index of the block)."""
    rows, columns = matrix.shape
    height, width = max(1, BLOCK // max(1, columns)), min(max(1, columns), BLOCK)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, top + height), (slice(top, top + height), slice(left, left + width))


def _round(weight: Tensor, low: Tensor, high: Tensor, *, out: Tensor, scratch: Tensor) -> None:
    """Round floats to signed powers from ``low`` to ``high``, or to zero under half of ``low``; all given as their bits, int32.

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


def _paper_top(rows: Tensor) -> Tensor:
    """``floor(log2(4/3 max|w|))`` of each row: the exponent of the power nearest to the maximum, a tie going up."""
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    mantissa, exponent = torch.frexp(largest)
    top = exponent - (mantissa < 0.75).int()
    return torch.where(largest > 0, top.clamp(SMALLEST, LARGEST), 0).to(torch.int32)


def _least_error_top(rows: Tensor, bits: int, start: Tensor, importance: Tensor | None) -> Tensor:
    """The integer n1 of least squared error of each row; of equals, the largest.

    Above the paper's n1 no level is gained. Going down from it, the error of the saturated weights only grows, so the
    search ends when that part alone reaches the best error of every row.
    """
    best_top, top = start.clone(), start.clone()
    best, saturated = _squared_error(rows, PowerOfTwo(bits, top), importance)
    while bool((open_rows := (saturated < best) & (top > SMALLEST)).any()):
        top = torch.where(open_rows, top - 1, top)
        error, saturated = _squared_error(rows, PowerOfTwo(bits, top), importance)
        best_top = torch.where(error < best, top, best_top)
        best = torch.minimum(error, best)
    return best_top


def _squared_error(rows: Tensor, codebook: PowerOfTwo, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Squared error of each row, and the part of it that comes from weights above the largest level; both float64."""
    level = codebook.project(rows)
    total, saturated = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    top = codebook.scale().to(rows.device).unsqueeze(1)
    for span, block in _blocks(rows):
        weight = rows[block].double()
        share = 1.0 if importance is None else importance[block]
        saturated[span] += weight.abs().sub_(top[span]).clamp_(min=0).square_().mul_(share).sum(1)
        total[span] += weight.sub_(level[block]).square_().mul_(share).sum(1)
    return total, saturated
