"""Widths: how many bits a layer gets, and on which grid.

A plain int, 2 to 8, stands for powers of two; ``Apot(6)`` for sums of two powers of two at 6 bits. Both are ints, so that costs
are sums and products as ever; in files and on the command line the second is the text ``apot6``.
"""

from collections.abc import Mapping
from typing import Any, Self

from octavo.codebook import check_bits
from octavo.errors import PlanError

__all__ = ["WIDTHS", "Apot", "by_size", "level_count", "read_width", "width_index", "write_width", "write_widths"]

APOT = {f"apot{bits}": bits for bits in range(5, 9)}
WIDTHS = 13  # what ``width_index`` stays below


class Apot(int):
    """Bits, 5 to 8, of a layer whose weights are sums of two powers of two: see ``octavo.additive``.

    It counts and compares as its bits do, but equals only the same width on the same grid: ``Apot(6) != 6``.

    Raises:
        PlanError: other bits.

    """

    def __new__(cls, bits: int) -> Self:
        """The width of so many bits."""
        if isinstance(bits, bool) or not isinstance(bits, int) or f"apot{int(bits)}" not in APOT:
            raise PlanError(f"Apot: expected an integer from 5 to 8, got {bits!r}")
        return super().__new__(cls, bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Apot) and int(self) == int(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((int(self), True))

    def __repr__(self) -> str:
        return f"Apot({int(self)})"

    def __str__(self) -> str:
        return f"apot{int(self)}"


def read_width(value: Any, name: str = "bits") -> int:
    """The width that ``value`` is, or stands for as a text; ``name`` is what errors call its place.

    Raises:
        PlanError: no width; the message says what is.

    """
    if isinstance(value, Apot):
        return value
    if isinstance(value, str) and value.startswith("apot"):
        if value not in APOT:
            raise PlanError(f"{name}: expected one of {', '.join(APOT)}, got {value!r}")
        return Apot(APOT[value])
    check_bits(value, name)
    return int(value)


def write_width(width: int) -> int | str:
    """What stands for a width in YAML and JSON, which know no ``Apot``."""
    return str(width) if isinstance(width, Apot) else width


def write_widths(widths: Mapping[str, int]) -> dict[str, int | str]:
    """The widths of layers, likewise."""
    return {name: write_width(width) for name, width in widths.items()}


def by_size(width: int) -> tuple[int, bool]:
    """What widths are sorted by: bits, then the grid."""
    return int(width), isinstance(width, Apot)


def width_index(width: int) -> int:
    """Where a table by width has this one: plain bits at 2 to 8, ``Apot(5)`` to ``Apot(8)`` after them."""
    return width + 4 if isinstance(width, Apot) else width


def level_count(width: int) -> int:
    """How many levels, and so how many codes, there are."""
    return (1 << width) - 1 if isinstance(width, Apot) else (1 << (width - 1)) + 1
