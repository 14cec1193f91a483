"""The options of a search: a width, or a width with the bits of the layer's inputs."""

from typing import Any, Self, TypeAlias

from octavo.errors import PlanError
from octavo.formats.width import FLOAT, Width, check_bits, read_width, write_width

__all__ = [
    "WIDTHS",
    "Both",
    "Option",
    "by_size",
    "input_bits",
    "read_option",
    "weight_bits",
    "width_index",
    "write_option",
]

WIDTHS = 13  # what ``width_index`` stays below, but for ``Both``


class Both(int):
    """Bits of a layer's weights and of its inputs; it counts and compares as their product.

    Args:
        weights: a width of the weights.
        inputs: 2 to 8, or 32 for inputs in float.

    Raises:
        PlanError: other bits.

    """

    weights: Width
    inputs: int

    def __new__(cls, weights: "Width | int", inputs: int) -> Self:
        """Make the option of these two."""
        width = read_width(weights)
        if inputs != FLOAT:
            check_bits(inputs, "bits of inputs")
        option = super().__new__(cls, width.bits * inputs)
        option.weights = width
        option.inputs = inputs
        return option

    def __getnewargs__(self) -> tuple[Width, int]:  # type: ignore[override]
        return self.weights, self.inputs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Both):
            return False
        return (self.weights, self.inputs) == (other.weights, other.inputs)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.weights, self.inputs))

    def __repr__(self) -> str:
        return f"Both({self.weights!s}, {self.inputs})"

    def __str__(self) -> str:
        return f"{self.weights}x{self.inputs}"


Option: TypeAlias = Width | int  # an int is plain bits or a ``Both``


def weight_bits(option: Option) -> Option:
    """Return the width of the weights that an option of a search gives."""
    return option.weights if isinstance(option, Both) else option


def input_bits(option: Option) -> int:
    """Return the bits of the inputs that an option gives; 32 where they are not quantized."""
    return option.inputs if isinstance(option, Both) else FLOAT


def read_option(value: Any) -> Option:
    """Return the option that ``value`` stands for: a width, or two such as ``3x8``.

    Raises:
        PlanError: neither.

    """
    weights, times, inputs = value.partition("x") if isinstance(value, str) else ("", "", "")
    if not times:
        return read_width(value)
    if not inputs.isdecimal():
        raise PlanError(f"bits: expected the bits of weights and inputs as in 3x8, got {value!r}")
    return Both(read_width(int(weights) if weights.isdecimal() else weights), int(inputs))


def write_option(option: Option) -> int | str:
    """Return what stands for an option in the journal."""
    return str(option) if isinstance(option, Both) else write_width(option)


def by_size(option: Option) -> tuple[int, int]:
    """Return what options are sorted by: their size, then their width."""
    return int(option), width_index(weight_bits(option))


def width_index(option: Option) -> int:
    """Return the place of an option in a table by width."""
    if isinstance(option, Both):
        of_inputs = 1 if option.inputs == FLOAT else option.inputs
        return width_index(option.weights) + WIDTHS * of_inputs
    return int(option) + (4 if isinstance(option, Width) and option.codebook == "apot" else 0)
