"""What codebooks have in common, on whatever grid: their interface, rows of one scale each, the
scale of least squared error.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.width import Width

__all__ = [
    "BLOCK",
    "LARGEST",
    "SMALLEST",
    "Codebook",
    "Fit",
    "Per",
    "blocks",
    "check_exponent",
    "check_finite",
    "checked_rows",
    "decoded",
    "edges",
    "least_error_exponent",
    "power",
    "rows_by_exponent",
]  # fmt: skip

Fit = Literal["max", "mse"]
Per = Literal["layer", "channel"]

BLOCK = 1 << 16  # weights rounded at a time: their working set stays in a core's second-level cache
SMALLEST, LARGEST = -149, 127  # exponents of float32's smallest and largest power of two


class Codebook(Protocol):
    """The levels of one quantized tensor, on whatever grid: ``unit_levels`` times ``scale``.

    A code is the index of a level in ascending order. Levels are symmetric; the middle one is zero.
    """

    lowest: ClassVar[int]  # the least n1 at which every level is exact in float32

    @property
    def bits(self) -> int:
        """Nominal bits."""

    @property
    def width(self) -> Width:
        """The bits together with the name of this kind of codebook."""

    @property
    def max_exponent(self) -> Tensor:
        """n1: an integer scalar, or one value per output channel."""

    @property
    def zero(self) -> int:
        """The code of zero."""

    @property
    def edge(self) -> float:
        """The outer edge of the largest level's cell, in units of the scale."""

    def unit_levels(self) -> Tensor:
        """Ascending float32 levels for n1 = 0."""

    def scale(self) -> Tensor:
        """``2^n1``: float32, shape of ``max_exponent``."""

    def levels(self) -> Tensor:
        """Ascending float32 levels, a row for each n1."""

    def project(self, weight: Tensor, /) -> Tensor:
        """Each weight's level, float32."""

    def encode(self, weight: Tensor, /) -> Tensor:
        """Each weight's code, uint8."""

    def decode(self, codes: Tensor, /) -> Tensor:
        """The levels that codes stand for, float32."""


def checked_rows(weight: Tensor, fit: Fit, per: Per, name: str) -> Tensor:
    """``weight`` in float32 as a matrix with a row for each exponent that is to be chosen.

    Raises:
        PlanError: an unknown ``fit`` or ``per``, or a weight that is NaN or infinite.

    """
    if fit not in ("max", "mse") or per not in ("layer", "channel"):
        raise PlanError(
            f'{name}: expected fit "max" or "mse" and per "layer" or "channel", got fit={fit!r}, per={per!r}'
        )
    values = weight.detach().float()
    check_finite(values, name)
    if per == "channel" and not weight.dim():
        raise PlanError(f"{name}: expected a tensor with output channels, got a scalar")
    return _matrix(values, weight.shape[0] if per == "channel" else 1)


def check_exponent(top: Tensor) -> None:
    """Raise PlanError unless ``max_exponent`` is an integer scalar or vector."""
    if top.dim() > 1 or top.is_floating_point():
        raise PlanError(
            f"top: expected an integer scalar or vector, got {top.dtype} {tuple(top.shape)}"
        )


def check_finite(weight: Tensor, name: str) -> None:
    """Raise PlanError if a weight is NaN or infinite."""
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise PlanError(
            f"{name}: expected finite weights, got {bad} of {weight.numel()} that are NaN or infinite"
        )


def rows_by_exponent(tensor: Tensor, top: Tensor) -> Tensor:
    """``tensor`` as a contiguous matrix with a row for each exponent in ``max_exponent``; floats as
    float32.
    """
    if top.dim() and (not tensor.dim() or tensor.shape[0] != len(top)):
        raise PlanError(
            f"expected a tensor of {len(top)} output channels, got shape {tuple(tensor.shape)}"
        )
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return _matrix(tensor, len(top) if top.dim() else 1).contiguous()


def power(exponent: Tensor) -> Tensor:
    """``2^exponent``, exact: float32, shape of ``exponent``."""
    result = np.ldexp(np.float32(1), exponent.cpu().numpy().astype(np.int32))
    return torch.from_numpy(np.asarray(result)).to(
        exponent.device
    )  # of a scalar, numpy makes no array


def decoded(codebook: Codebook, codes: Tensor) -> Tensor:
    """The levels of ``codebook`` that ``codes`` stand for: see ``PowerOfTwo.decode``."""
    unit = codebook.unit_levels().to(codes.device)
    if codes.numel() and int(codes.max()) >= len(unit):
        raise PlanError(
            f"codes: expected at most {len(unit) - 1} at {codebook.width} bits, got {int(codes.max())}"
        )
    level = unit[rows_by_exponent(codes, codebook.max_exponent).int()]
    return level.mul_(codebook.scale().to(codes.device).view(-1, 1)).view(codes.shape)


def edges(levels: Tensor) -> Tensor:
    """What divides the levels: a tie goes to the larger one (INQ, eq. 4), so below zero it lies
    just above the middle.

    So ``torch.bucketize(weight, edges(levels), right=True)`` is the index of each weight's level.
    """
    middle = (levels[1:] + levels[:-1]) / 2
    return torch.where(middle < 0, torch.nextafter(middle, torch.zeros_like(middle)), middle)


def least_error_exponent(
    rows: Tensor, at: Callable[[Tensor], Codebook], start: Tensor, importance: Tensor | None
) -> Tensor:
    """The integer n1 of least squared error of each row; of equals, the largest.

    Above ``start``, for which the paper's n1 will do, no level is gained. Going down from it, the
    error of the saturated weights only grows, so the search ends when that part alone reaches the
    best error of every row.

    Args:
        rows: see :func:`checked_rows`.
        at: the codebook of a choice of n1.
        start: the largest n1 of each row that may be the best.
        importance: of each weight, shape of ``rows``.

    """
    best_top, top = start.clone(), start.clone()
    best, saturated = _squared_error(rows, codebook := at(top), importance)
    while bool((open_rows := (saturated < best) & (top > codebook.lowest)).any()):
        top = torch.where(open_rows, top - 1, top)
        error, saturated = _squared_error(rows, at(top), importance)
        best_top = torch.where(error < best, top, best_top)
        best = torch.minimum(error, best)
    return best_top


def _squared_error(
    rows: Tensor, codebook: Codebook, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Squared error of each row, and the part of it that comes from weights above the largest
    level; both float64.
    """
    level = codebook.project(rows)
    total, saturated = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    top = codebook.levels()[..., -1:].to(rows.device)
    for span, block in blocks(rows):
        weight = rows[block].double()
        share = 1.0 if importance is None else importance[block]
        saturated[span] += weight.abs().sub_(top[span]).clamp_(min=0).square_().mul_(share).sum(1)
        total[span] += weight.sub_(level[block]).square_().mul_(share).sum(1)
    return total, saturated


def blocks(matrix: Tensor) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Cut a matrix into blocks of at most BLOCK elements, whole rows where they fit: (rows, index
    of the block).
    """
    rows, columns = matrix.shape
    height, width = max(1, BLOCK // max(1, columns)), min(max(1, columns), BLOCK)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, top + height), (slice(top, top + height), slice(left, left + width))


def _matrix(tensor: Tensor, rows: int) -> Tensor:
    """``tensor`` as a matrix of so many rows. (With no rows at all, reshape cannot tell the number
    of columns.)
    """
    return tensor.reshape(rows, tensor.numel() // max(1, rows))
