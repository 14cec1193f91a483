"""Widths: how many bits a layer gets, and on which grid.

A plain int, 2 to 8, stands for powers of two; ``Apot(6)`` for sums of two powers of two at 6 bits.
Both are ints, so that costs are sums and products as ever; in files and on the command line the
second is the text ``apot6``.

``Both(3, 8)``, in journals ``3x8``, is what a search for the bits of weights and inputs gives a
layer.
"""

from collections.abc import Mapping
from typing import Any, Self

from octavo.errors import PlanError
from octavo.formats.powers_of_two import check_bits

__all__ = [
    "FLOAT", "WIDTHS", "Apot", "Both", "by_size", "input_bits", "level_count", "read_option", "read_width", "weight_bits",
    "width_index", "write_width", "write_widths",
]  # fmt: skip

APOT = {f"apot{bits}": bits for bits in range(5, 9)}
WIDTHS = 13  # what ``width_index`` stays below, but for ``Both``
FLOAT = 32  # bits of inputs that are not quantized


class Apot(int):
    """Bits, 5 to 8, of a layer whose weights are sums of two powers of two: see
    ``octavo.formats.sums_of_powers``.

    It counts and compares as its bits do, but equals only the same width on the same grid:
    ``Apot(6) != 6``.

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


class Both(int):
    """Bits of a layer's weights and of its inputs.

    It counts and compares as their product, what a multiply-accumulate costs, but equals only the
    same two.

    Args:
        weights: 2 to 8, or an ``Apot``.
        inputs: 2 to 8, or 32 for inputs in float.

    Raises:
        PlanError: other bits.

    """

    weights: int
    inputs: int

    def __new__(cls, weights: int, inputs: int) -> Self:
        """The option of these two."""
        weights = read_width(weights)
        if inputs != FLOAT:
            check_bits(inputs, "bits of inputs")
        option = super().__new__(cls, weights * inputs)
        option.weights, option.inputs = weights, inputs
        return option

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return self.weights, self.inputs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Both) and (self.weights, self.inputs) == (
            other.weights,
            other.inputs,
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.weights, self.inputs))

    def __repr__(self) -> str:
        return f"Both({self.weights!r}, {self.inputs})"

    def __str__(self) -> str:
        return f"{self.weights}x{self.inputs}"


def weight_bits(option: int) -> int:
    """The width of the weights that an option of a search gives."""
    return option.weights if isinstance(option, Both) else option


def input_bits(option: int) -> int:
    """The bits of the inputs that an option of a search gives; 32 where they are not quantized."""
    return option.inputs if isinstance(option, Both) else FLOAT


def read_option(value: Any) -> int:
    """The option of a search that ``value`` is, or stands for as a text: a width, or two such as
    ``3x8``.

    Raises:
        PlanError: neither.

    """
    weights, times, inputs = value.partition("x") if isinstance(value, str) else ("", "", "")
    if not times:
        return read_width(value)
    if not inputs.isdecimal():
        raise PlanError(f"bits: expected the bits of weights and inputs as in 3x8, got {value!r}")
    return Both(read_width(int(weights) if weights.isdecimal() else weights), int(inputs))


def read_width(value: Any, name: str = "bits") -> int:
    """The width that ``value`` is, or stands for as a text; ``name`` is what errors call its place.

    Raises:
        PlanError: no width; the message says what is.

    """
    if isinstance(value, Apot):
        return value
    if isinstance(value, Both):
        raise PlanError(f"{name}: expected bits of weights alone, got {value}")
    if isinstance(value, str) and value.startswith("apot"):
        if value not in APOT:
            raise PlanError(f"{name}: expected one of {', '.join(APOT)}, got {value!r}")
        return Apot(APOT[value])
    check_bits(value, name)
    return int(value)


def write_width(width: int) -> int | str:
    """What stands for a width in YAML and JSON, which know no ``Apot`` and no ``Both``."""
    return str(width) if isinstance(width, Apot | Both) else width


def write_widths(widths: Mapping[str, int]) -> dict[str, int | str]:
    """The widths of layers, likewise."""
    return {name: write_width(width) for name, width in widths.items()}


def by_size(width: int) -> tuple[int, int]:
    """What widths are sorted by: bits, then the grid; what gives both, by the product, then the
    width of the weights.
    """
    return int(width), width_index(width.weights) if isinstance(width, Both) else isinstance(
        width, Apot
    )


def width_index(width: int) -> int:
    """Where a table by width has this one: plain bits at 2 to 8, ``Apot(5)`` to ``Apot(8)`` after
    them.

    ``Both`` has a table of ``WIDTHS`` places for each of its inputs' bits, up to 9 tables in all.
    """
    if isinstance(width, Both):
        return width_index(width.weights) + WIDTHS * (1 if width.inputs == FLOAT else width.inputs)
    return width + 4 if isinstance(width, Apot) else width


def level_count(width: int) -> int:
    """How many levels, and so how many codes, there are."""
    return (1 << width) - 1 if isinstance(width, Apot) else (1 << (width - 1)) + 1
