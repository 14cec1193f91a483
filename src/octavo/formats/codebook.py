"""The interface that all codebooks have in common, and the helpers that they share.

A codebook lists the values, or levels, that the weights of one tensor may take. Helpers: a tensor
as rows that have one exponent each, the edges between levels, and the exponent of least squared
error.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from octavo._deprecated import warn_renamed
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
    "read_per",
    "rows_by_exponent",
]

Fit = Literal["max", "mse"]
Per = Literal["tensor", "channel"]

BLOCK = 1 << 16  # weights rounded at a time: their working set stays in a core's second-level cache
SMALLEST = -149  # the exponent of float32's smallest power of two
LARGEST = 127  # the exponent of its largest
FLOAT32_MANTISSA = 23  # the bits of a float32 below its exponent field
FLOAT32_BIAS = 127  # the exponent field holds the exponent plus this


class Codebook(Protocol):
    """The levels of one quantized tensor: ``unit_levels`` times ``scale``.

    A code is the index of a level in ascending order. Levels are symmetric; the middle one is zero.
    """

    # The lowest value of ``max_exponent`` at which every level is exact in float32.
    lowest_max_exponent: ClassVar[int]

    @property
    def width(self) -> Width:
        """The nominal bits together with the name of this kind of codebook."""

    @property
    def max_exponent(self) -> Tensor:
        """The exponent of the scale: an integer scalar, or one value per output channel."""

    @property
    def zero(self) -> int:
        """The code of zero."""

    @property
    def edge(self) -> float:
        """The outer edge of the largest level's cell, in units of the scale."""

    def unit_levels(self) -> Tensor:
        """Return the ascending float32 levels of the scale 1."""

    def scale(self) -> Tensor:
        """Return ``2^max_exponent``: float32, shape of ``max_exponent``."""

    def levels(self) -> Tensor:
        """Return the ascending float32 levels, a row for each exponent."""

    def project(self, weight: Tensor, /) -> Tensor:
        """Round each weight to a level; the result is float32."""

    def encode(self, weight: Tensor, /) -> Tensor:
        """Return the code of each weight's level, uint8."""

    def decode(self, codes: Tensor, /) -> Tensor:
        """Return the levels that codes stand for, float32."""


def read_per(per: str, name: str = "weight") -> Per:
    """Return ``per``, checked; the old word ``"layer"`` is read as ``"tensor"``, with a warning.

    Args:
        per: ``"tensor"`` or ``"channel"``.
        name: the name of the tensor, for errors.

    Raises:
        PlanError: any other value.

    """
    if per == "layer":
        warn_renamed('per="layer"', 'per="tensor"', stacklevel=4)  # the caller of our caller
        return "tensor"
    for known in get_args(Per):
        if per == known:
            return known  # type: ignore[no-any-return]  # get_args has no type of its own
    raise PlanError(f'{name}: expected per "tensor" or "channel", got {per!r}')


def checked_rows(weight: Tensor, fit: Fit, per: Per, name: str) -> Tensor:
    """Return ``weight`` in float32 as a matrix, with a row for each exponent to be chosen.

    Raises:
        PlanError: an unknown ``fit``, or a weight that is NaN or infinite.

    """
    if fit not in get_args(Fit):
        raise PlanError(f'{name}: expected fit "max" or "mse", got {fit!r}')
    values = weight.detach().float()
    check_finite(values, name)
    if per == "channel" and not weight.dim():
        raise PlanError(f"{name}: expected a tensor with output channels, got a scalar")
    return _matrix(values, weight.shape[0] if per == "channel" else 1)


def check_exponent(max_exponent: Tensor) -> None:
    """Raise PlanError unless ``max_exponent`` is an integer scalar or vector."""
    if max_exponent.dim() > 1 or max_exponent.is_floating_point():
        raise PlanError(
            "max_exponent: expected an integer scalar or vector, "
            f"got {max_exponent.dtype} {tuple(max_exponent.shape)}"
        )


def check_finite(weight: Tensor, name: str) -> None:
    """Raise PlanError if a weight is NaN or infinite."""
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise PlanError(
            f"{name}: expected finite weights, "
            f"got {bad} of {weight.numel()} that are NaN or infinite"
        )


def rows_by_exponent(tensor: Tensor, max_exponent: Tensor) -> Tensor:
    """Return ``tensor`` as a contiguous matrix with a row for each exponent; floats become float32.

    Raises:
        PlanError: the tensor has another number of output channels than there are exponents.

    """
    if max_exponent.dim() and (not tensor.dim() or tensor.shape[0] != len(max_exponent)):
        raise PlanError(
            f"expected a tensor of {len(max_exponent)} output channels, "
            f"got shape {tuple(tensor.shape)}"
        )
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return _matrix(tensor, len(max_exponent) if max_exponent.dim() else 1).contiguous()


def power(exponent: Tensor) -> Tensor:
    """Return ``2^exponent``, exact: float32, shape of ``exponent``."""
    exponent = exponent.int().clamp(-252, 254)
    half = exponent >> 1
    # A float32 with an empty mantissa is a power of two. Two factors reach the subnormal numbers.
    one, other = ((part + FLOAT32_BIAS) << FLOAT32_MANTISSA for part in (half, exponent - half))
    return one.view(torch.float32) * other.view(torch.float32)


def decoded(codebook: Codebook, codes: Tensor) -> Tensor:
    """Return the levels of ``codebook`` that ``codes`` stand for: see ``PowerOfTwo.decode``."""
    unit = codebook.unit_levels().to(codes.device)
    if codes.numel() and int(codes.max()) >= len(unit):
        raise PlanError(
            f"codes: expected at most {len(unit) - 1} at {codebook.width} bits, "
            f"got {int(codes.max())}"
        )
    level = unit[rows_by_exponent(codes, codebook.max_exponent).int()]  # (exponents, weights)
    return level.mul_(codebook.scale().to(codes.device).view(-1, 1)).view(codes.shape)


def edges(levels: Tensor) -> Tensor:
    """Return the edges between the cells of levels, for ``torch.bucketize(..., right=True)``.

    A tie goes to the level that is larger in magnitude (INQ, eq. 4), so an edge below zero lies
    just above the middle. ``torch.bucketize(weight, edges(levels), right=True)`` is the index of
    each weight's level.
    """
    middle = (levels[1:] + levels[:-1]) / 2
    return torch.where(middle < 0, torch.nextafter(middle, torch.zeros_like(middle)), middle)


def least_error_exponent(
    rows: Tensor, at: Callable[[Tensor], Codebook], start: Tensor, importance: Tensor | None
) -> Tensor:
    """Find the integer exponent of least squared error of each row; of equals, the largest.

    No exponent above ``start``, which is the paper's, gains a level. Going down from it, the error
    of the saturated weights, those above the largest level, only grows; so a row is finished when
    that part alone reaches the row's best error.

    Args:
        rows: see :func:`checked_rows`.
        at: makes the codebook that has these exponents.
        start: the largest exponent of each row that may be the best.
        importance: the weight of each element's squared error, shape of ``rows``; None for equal.

    """
    exponent = start.clone()
    best_exponent = start.clone()
    codebook = at(exponent)
    best_error, saturated = _squared_error(rows, codebook, importance)
    while True:
        is_open = (saturated < best_error) & (exponent > codebook.lowest_max_exponent)
        if not bool(is_open.any()):
            return best_exponent
        exponent = torch.where(is_open, exponent - 1, exponent)
        error, saturated = _squared_error(rows, at(exponent), importance)
        best_exponent = torch.where(error < best_error, exponent, best_exponent)
        best_error = torch.minimum(error, best_error)


def _squared_error(
    rows: Tensor, codebook: Codebook, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of each row, and the part of it that comes from weights above the
    largest level; both float64.
    """
    level = codebook.project(rows)
    largest = codebook.levels()[..., -1:].to(rows.device)  # (rows, 1)
    total, saturated = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    for span, block in blocks(rows):
        weight = rows[block].double()
        share = 1.0 if importance is None else importance[block]
        beyond = weight.abs().sub_(largest[span]).clamp_(min=0)
        saturated[span] += beyond.square_().mul_(share).sum(1)
        total[span] += weight.sub_(level[block]).square_().mul_(share).sum(1)
    return total, saturated


def blocks(matrix: Tensor) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Cut a matrix into blocks of at most BLOCK elements, of whole rows where they fit; a matrix
    that is not on a CPU is a single block, because there each operation is a launch.

    Yields the rows of each block, and the index of the block.
    """
    rows, columns = matrix.shape
    if matrix.device.type != "cpu":
        yield slice(None), (slice(None), slice(None))
        return
    height = max(1, BLOCK // max(1, columns))
    width = min(max(1, columns), BLOCK)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            span = slice(top, top + height)
            yield span, (span, slice(left, left + width))


def _matrix(tensor: Tensor, rows: int) -> Tensor:
    """Return ``tensor`` as a matrix of so many rows. (With no rows at all, reshape cannot tell the
    number of columns.)
    """
    return tensor.reshape(rows, tensor.numel() // max(1, rows))
