"""Width: how many bits a layer gets, and which codebook these bits are of."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from octavo.errors import PlanError, either

__all__ = [
    "BITS",
    "FLOAT",
    "Apot",
    "Width",
    "WidthLike",
    "bits_of",
    "check_bits",
    "read_width",
    "write_width",
    "write_widths",
]

FLOAT = 32  # bits of a value that is not quantized

# The names of the codebooks and, for the bits that each can have, the number of its levels; in the
# order in which widths of equal bits are sorted. octavo.formats.registry has what is behind the
# names.
LEVEL_COUNTS: Mapping[str, Mapping[int, int]] = {
    "power_of_two": {bits: (1 << (bits - 1)) + 1 for bits in range(2, 9)},
    "apot": {bits: (1 << bits) - 1 for bits in range(5, 9)},
    "fp": {4: 15, 6: 63, 8: 253},  # E2M1, E2M3, E4M3
    "int": {8: 255},
}
BITS: Mapping[str, Sequence[int]] = {name: tuple(of) for name, of in LEVEL_COUNTS.items()}


@functools.total_ordering
@dataclass(frozen=True, eq=False, repr=False)
class Width:
    """A width is a number of bits together with the codebook that gives them their meaning.

    A width of powers of two equals the plain int, and has its hash: ``Width(3) == 3``. A width of
    another codebook equals no int: ``Width(6, "apot") != 6``. Widths are sorted by their bits, and
    then by their codebooks; a plain int counts as a width of powers of two.

    Attributes:
        bits: nominal bits of one weight.
        codebook: ``"power_of_two"``, 2 to 8 bits; ``"apot"``, sums of two powers of two, 5 to 8
            bits; ``"fp"``, floating-point numbers of 4, 6 or 8 bits (E2M1, E2M3, E4M3); or
            ``"int"``, integers of 8 bits.

    Raises:
        PlanError: no such codebook, or bits that it cannot have.

    """

    bits: int
    codebook: str = "power_of_two"

    def __post_init__(self) -> None:
        if self.codebook not in BITS:
            known = ", ".join(BITS)
            raise PlanError(f"codebook: expected one of {known}, got {self.codebook!r}")
        _check_among(self.bits, BITS[self.codebook], "bits")

    @property
    def level_count(self) -> int:
        """The number of levels, and so of codes."""
        return LEVEL_COUNTS[self.codebook][self.bits]

    def __eq__(self, other: object) -> bool:
        key = _sort_key(other)
        return NotImplemented if key is None else _sort_key(self) == key

    def __lt__(self, other: object) -> bool:
        own_key = _sort_key(self)
        key = _sort_key(other)
        return NotImplemented if own_key is None or key is None else own_key < key

    def __hash__(self) -> int:
        if self.codebook == "power_of_two":
            return hash(self.bits)
        return hash(_sort_key(self))

    def __int__(self) -> int:
        return self.bits

    def __str__(self) -> str:
        return str(write_width(self))

    def __format__(self, spec: str) -> str:
        return format(write_width(self), spec)

    def __repr__(self) -> str:
        codebook = "" if self.codebook == "power_of_two" else f", {self.codebook!r}"
        return f"Width({self.bits}{codebook})"


WidthLike: TypeAlias = Width | int | str  # the forms of a width that ``read_width`` takes


def Apot(bits: int) -> Width:  # noqa: N802 - it is public and was a class
    """Return the width of sums of two powers of two at so many bits, 5 to 8.

    The codebook is ``octavo.formats.sums_of_powers``. In YAML, in files and on the command line
    ``Apot(6)`` is the text ``apot6``.

    Raises:
        PlanError: other bits.

    """
    return Width(_check_among(bits, BITS["apot"], "Apot"), "apot")


def read_width(value: object, name: str = "bits") -> Width:
    """Return the width that ``value`` stands for: an int, a text such as ``apot6``, or a width.

    Args:
        value: 2 to 8 for powers of two, or the name of another codebook followed by bits.
        name: the name of the value, for errors.

    Raises:
        PlanError: ``value`` stands for no width; the message names those that there are.

    """
    if isinstance(value, Width):
        return value
    known = _widths().get(value) if type(value) is int or type(value) is str else None
    if known is not None:
        return known
    raise PlanError(f"{name}: expected {_choices()}, got {value!r}{_widths_like(value)}")


@functools.cache
def _widths() -> Mapping[int | str, Width]:
    """Return all widths, by the values that stand for them."""
    widths = [Width(bits, codebook) for codebook, possible in BITS.items() for bits in possible]
    return {write_width(width): width for width in widths}


def _choices() -> str:
    """Return the values that stand for a width, in words: ``2 to 8, apot5 to apot8, fp4 ...``."""
    parts: list[str] = []
    for codebook, possible in BITS.items():
        texts = [str(write_width(Width(bits, codebook))) for bits in possible]
        in_a_row = len(texts) > 1 and len(texts) == possible[-1] - possible[0] + 1
        parts += [f"{texts[0]} to {texts[-1]}"] if in_a_row else texts
    return either(parts)


def _widths_like(value: object) -> str:
    """Return the end of the message about a text such as ``int4``: the widths of as many bits."""
    numbers = re.findall(r"\d+", value) if isinstance(value, str) else []
    same = [str(text) for text, width in _widths().items() if numbers == [str(width.bits)]]
    return f"; for {numbers[0]} bits write {either(same)}" if same else ""


def bits_of(value: object, codebook: str, name: str = "bits") -> int:
    """Return the bits that ``value``, an int or a width of this codebook, gives the codebook.

    Raises:
        PlanError: a width of another codebook, or bits that this one cannot have.

    """
    if isinstance(value, Width) and value.codebook == codebook:
        return value.bits
    return _check_among(value, BITS[codebook], name)


def write_width(width: WidthLike) -> int | str:
    """Return what stands for a width in YAML and JSON: ``3`` or ``apot6``."""
    width = read_width(width)
    return width.bits if width.codebook == "power_of_two" else f"{width.codebook}{width.bits}"


def write_widths(widths: Mapping[str, WidthLike]) -> dict[str, int | str]:
    """Return what stands for the widths of layers in YAML and JSON, by layer name."""
    return {name: write_width(width) for name, width in widths.items()}


def check_bits(bits: object, name: str = "bits") -> int:
    """Return ``bits``, or raise PlanError unless it is a plain integer from 2 to 8."""
    return _check_among(bits, BITS["power_of_two"], name)


def _check_among(bits: object, possible: Sequence[int], name: str) -> int:
    if type(bits) is not int or bits not in possible:
        first, last = possible[0], possible[-1]
        in_a_row = len(possible) == last - first + 1 > 1
        limits = f"from {first} to {last}" if in_a_row else f"among {', '.join(map(str, possible))}"
        raise PlanError(f"{name}: expected an integer {limits}, got {bits!r}")
    return bits


def _sort_key(width: object) -> tuple[int, int] | None:
    """Return what widths are compared by: their bits, then the index of their codebook in BITS."""
    if isinstance(width, Width):
        return width.bits, list(BITS).index(width.codebook)
    if isinstance(width, int):
        return width, 0
    return None
