"""The interface that all codebooks have in common, and the helpers that they share.

A codebook lists the values, or levels, that the weights of one tensor may take. Helpers: powers of
two, the levels that codes stand for, and the edges between levels.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.rows import from_rows, rows_by_exponent
from octavo.formats.width import Width

__all__ = [
    "BLOCK",
    "LARGEST",
    "SMALLEST",
    "Codebook",
    "Reach",
    "blocks",
    "decoded",
    "edges",
    "power",
]

BLOCK = 1 << 16  # weights rounded at a time: their working set stays in a core's second-level cache
SMALLEST = -149  # the exponent of float32's smallest power of two
LARGEST = 127  # the exponent of its largest
FLOAT32_MANTISSA = 23  # the bits of a float32 below its exponent field
FLOAT32_BIAS = 127  # the exponent field holds the exponent plus this


@dataclass(frozen=True)
class Reach:
    """The range of a codebook's levels, in units of its scale.

    Attributes:
        edge: the outer edge of the largest level's cell.
        fitted: the largest magnitude that ``fit="max"`` lets a weight have.

    """

    edge: float
    fitted: float


class Codebook(Protocol):
    """The levels of one quantized tensor: ``unit_levels`` times the scale ``2^max_exponent``.

    A code is the index of a level in ascending order. Levels are symmetric; the middle one is zero.

    No level stands for NaN. ``project`` and ``encode`` run in inner loops and do not look for it:
    it gets a level of the largest magnitude. Their callers check the weights first.
    """

    # The lowest value of ``max_exponent`` at which every level is exact in float32.
    lowest_max_exponent: ClassVar[int]

    @property
    def width(self) -> Width:
        """The nominal bits together with the name of this kind of codebook."""

    @property
    def max_exponent(self) -> Tensor:
        """The exponent of the scale: an integer scalar, one value per output channel, or a matrix
        (channels, groups).
        """

    @property
    def group_size(self) -> int:
        """The inputs of a channel that share an exponent; 0 if there are no groups."""

    @property
    def zero(self) -> int:
        """The code of zero."""

    @property
    def reach(self) -> Reach:
        """The range of the levels, in units of the scale."""

    def unit_levels(self) -> Tensor:
        """Return the ascending float32 levels of the scale 1."""

    def levels(self) -> Tensor:
        """Return the ascending float32 levels, a row for each exponent."""

    def project(self, weight: Tensor, /) -> Tensor:
        """Round each weight to a level; the result is float32."""

    def encode(self, weight: Tensor, /) -> Tensor:
        """Return the code of each weight's level, uint8."""

    def decode(self, codes: Tensor, /, out: Tensor | None = None) -> Tensor:
        """Return the levels that codes stand for, float32, in the memory of ``out`` if given."""


def power(exponent: Tensor) -> Tensor:
    """Return ``2^exponent``, exact: float32, shape of ``exponent``."""
    exponent = exponent.int().clamp(-252, 254)
    half = exponent >> 1
    # A float32 with an empty mantissa is a power of two. Two factors reach the subnormal numbers.
    one, other = ((part + FLOAT32_BIAS) << FLOAT32_MANTISSA for part in (half, exponent - half))
    return one.view(torch.float32) * other.view(torch.float32)


def decoded(codebook: Codebook, codes: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the levels of ``codebook`` that ``codes`` stand for: see ``PowerOfTwo.decode``."""
    unit = codebook.unit_levels()
    if codes.numel() and int(codes.max()) >= len(unit):
        raise PlanError(
            f"codes: expected at most {len(unit) - 1} at {codebook.width} bits, "
            f"got {int(codes.max())}"
        )
    group_size = codebook.group_size
    rows = rows_by_exponent(codes, codebook.max_exponent, group_size)
    scale = power(codebook.max_exponent).to(codes.device).view(-1, 1)
    same = None if out is None or out.numel() != rows.numel() else out  # groups may be filled up
    level = scale.new_empty(rows.shape) if same is None else same.view(rows.shape)
    parts = list(blocks(rows))
    most = sum(rows[block].numel() for _, block in parts[:1])
    table = _Table(unit, most, codes.device)
    for span, block in parts:
        found = table.look_up(rows[block])
        torch.mul(found, scale[span] if len(scale) > 1 else scale, out=level[block])
    result = from_rows(level, codes.shape, group_size)
    return result if out is None or out is same else out.copy_(result)


class _Table:
    """Looks up the levels of codes, two at a time, in memory that it keeps.

    Args:
        unit: the levels.
        most: the most codes that are looked up at once.
        device: of the codes.

    """

    def __init__(self, unit: Tensor, most: int, device: torch.device) -> None:
        count = -(-most // 2)  # pairs
        self._levels = _pairs(tuple(unit.tolist())).to(device)
        self._codes = torch.zeros(count, dtype=torch.uint16, device=device)
        self._index = torch.empty(count, dtype=torch.int32, device=device)
        self._found = torch.empty(count, dtype=torch.float64, device=device)

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the levels of codes, float32; they stay until the next call."""
        count = codes.numel()
        pairs = slice(-(-count // 2))
        found = self._found[pairs]
        self._codes.view(torch.uint8)[:count] = codes.reshape(-1)
        index = self._index[pairs].copy_(self._codes[pairs])
        torch.index_select(self._levels, 0, index, out=found)
        return found.view(torch.float32)[:count].view(codes.shape)


@functools.cache
def _pairs(levels: tuple[float, ...]) -> Tensor:
    """Return each pair of levels, as the bits of a float64; its index is the two codes, taken for a
    little-endian integer. A pair is looked up as fast as a single level.
    """
    level = torch.tensor(levels, dtype=torch.float32, device="cpu")
    second = level[:, None].expand(-1, 256)
    first = torch.zeros(256, dtype=torch.float32, device="cpu")
    first[: len(levels)] = level
    return torch.stack([first.expand_as(second), second], 2).view(torch.float64).flatten()


def edges(levels: Tensor) -> Tensor:
    """Return the edges between the cells of levels, for ``torch.bucketize(..., right=True)``.

    A tie goes to the level that is larger in magnitude (INQ, eq. 4), so an edge below zero lies
    just above the middle. ``torch.bucketize(weight, edges(levels), right=True)`` is the index of
    each weight's level.
    """
    middle = (levels[1:] + levels[:-1]) / 2
    return torch.where(middle < 0, torch.nextafter(middle, torch.zeros_like(middle)), middle)


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
