"""Integers as a codebook: ``int8`` has -127 to 127, times one power of two."""

import functools

from octavo.formats.level_table import LevelTable
from octavo.formats.width import Width

__all__ = ["integers"]


@functools.cache
def integers(bits: int) -> LevelTable:
    """Return the symmetric integers of so many bits."""
    largest = (1 << (bits - 1)) - 1
    return LevelTable(Width(bits, "int"), tuple(range(1, largest + 1)), largest + 1)
