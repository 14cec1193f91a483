"""Sums of two powers of two as a codebook: ``apot5`` to ``apot8``.

The idea is APoT's (Li et al., ICLR 2020, arXiv 1909.13144). Every level is ``2^max_exponent`` times
a sum or a difference of two powers of two, so that a product still takes two shifts and one
addition. A codebook of ``b`` bits has zero and, with either sign, the first ``2^(b-1) - 1`` of
these numbers that have at most ``b - 3`` bits behind the leading one: at 5 bits 1, 2, ..., 8, 10,
12, 14, 16, 20, 24, 28; from 6 bits on also 9 and 15, never 11 or 13. They are evenly spaced near
zero and nearly logarithmic further out. At 4 bits they would be 1, 2, 3, 4, 6, 8, 12, which are the
numbers of FP4: see ``octavo.formats.floats``.

These levels are octavo's own. APoT adds up two interleaved sets of positive powers, which leaves
more squared error at every width (benchmarks/apot.py), and it learns a float scale by gradient,
where octavo's is a power of two.
"""

import functools

from octavo.formats.level_table import LevelTable
from octavo.formats.width import Width

__all__ = ["sums_of_powers"]


@functools.cache
def sums_of_powers(bits: int) -> LevelTable:
    """Return the levels of so many bits, 5 to 8."""
    count = 1 << (bits - 1)  # of the positive levels, and the one that would come next
    magnitudes: list[int] = []
    exponent = 0
    while len(magnitudes) < count:
        octave = {2**exponent}  # the levels from one power of two up to the next
        for low in range(max(0, exponent - bits + 3), exponent):
            octave |= {2**exponent + 2**low, 2 ** (exponent + 1) - 2**low}
        magnitudes += sorted(octave)
        exponent += 1
    *levels, following = magnitudes[:count]
    return LevelTable(Width(bits, "apot"), tuple(levels), following)
