"""E2M1 numbers in blocks that share a power of two: MXFP4 (OCP Microscaling Formats 1.0, 5.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.deploy.elements import E2M1_NUMBERS

__all__ = ["BLOCK", "Blocks", "exact_blocks", "pairs", "unpaired"]

BLOCK = 32  # numbers that share a scale
SCALE_BIAS = 127  # a stored scale ``e`` stands for ``2^(e - 127)`` (E8M0)
LARGEST_EXPONENT = 2  # of E2M1: its largest numbers are 4 and 6


@dataclass(frozen=True)
class Blocks:
    """A matrix in MXFP4.

    Attributes:
        packed: two E2M1 numbers in a byte, the even one in the low bits: uint8 (rows, columns / 2).
        scales: the biased exponents of the scales: uint8 (rows, columns / 32).

    """

    packed: Tensor
    scales: Tensor


def exact_blocks(matrix: Tensor) -> Blocks | None:
    """Return a matrix in MXFP4, or None where that is not exact.

    Each block gets the scale that puts its largest number at 4 or 6, so that the smaller numbers
    keep as many digits as the format has: if any scale is exact, this one is.

    Args:
        matrix: float32 (rows, columns).

    """
    rows, columns = matrix.shape
    if columns % BLOCK:
        return None
    block = matrix.reshape(rows, -1, BLOCK).double()
    largest = block.abs().amax(2)
    exponent = largest.where(largest > 0, 1.0).frexp().exponent - 1 - LARGEST_EXPONENT
    exponent = exponent.clamp(-SCALE_BIAS, SCALE_BIAS)
    elements = torch.ldexp(block, -exponent.unsqueeze(2)).float().reshape(rows, columns)
    if not bool(torch.isin(elements.abs(), E2M1_NUMBERS).all()):
        return None
    return Blocks(pairs(elements), (exponent + SCALE_BIAS).to(torch.uint8))


def pairs(elements: Tensor) -> Tensor:
    """Store two E2M1 numbers of a row in a byte, the even one in the low bits; a row of odd length
    ends in a zero.
    """
    magnitude = torch.searchsorted(E2M1_NUMBERS, elements.abs()).to(torch.uint8)  # 3 bits
    sign = (elements < 0).to(torch.uint8)
    codes = magnitude | sign << 3
    codes = nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return codes[:, ::2] | codes[:, 1::2] << 4


def unpaired(packed: Tensor) -> Tensor:
    """Return the E2M1 numbers of bytes that hold two each, float32."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return E2M1_NUMBERS[(codes & 7).int()] * torch.where(codes > 7, -1.0, 1.0)
