"""Small floating-point numbers as a codebook: ``fp4``, ``fp6`` and ``fp8``.

They are E2M1, E2M3 (OCP Microscaling Formats 1.0, 5.3) and E4M3 (OCP 8-bit Floating Point, 1.0),
the elements of MXFP4, MXFP6 and MXFP8, times one power of two. Only numbers are levels: there are
no codes for NaN or for a second zero. Every number of E2M1 is a sum of at most two powers of two,
every one of E2M3 of at most three signed ones.
"""

import functools

from octavo.formats.level_table import LevelTable
from octavo.formats.width import Width

__all__ = ["floats"]

MANTISSA_BITS = {4: 1, 6: 3, 8: 3}
# 2^(bits-1) codes have either sign. In E4M3, the last of them is NaN, in place of the number 480.
NAN_CODES = {4: 0, 6: 0, 8: 1}


@functools.cache
def floats(bits: int) -> LevelTable:
    """Return the numbers of so many bits, 4, 6 or 8, in units of the smallest."""
    count = (1 << (bits - 1)) - NAN_CODES[bits]
    numbers = [_number(code, MANTISSA_BITS[bits]) for code in range(1, count + 1)]
    *levels, following = numbers
    return LevelTable(Width(bits, "fp"), tuple(levels), following)


def _number(code: int, mantissa_bits: int) -> int:
    """Return the number that a code without sign stands for, in units of the smallest one."""
    exponent, mantissa = divmod(code, 1 << mantissa_bits)
    if exponent == 0:  # subnormal: there is no leading one
        return mantissa
    return ((1 << mantissa_bits) + mantissa) << (exponent - 1)
