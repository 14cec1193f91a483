"""Weights in the number formats that hardware and runtimes read: small elements times a scale that
is a power of two.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.formats.codebook import SMALLEST, Codebook, power
from octavo.formats.registry import codebook_at
from octavo.formats.rows import spread

__all__ = [
    "E2M1",
    "E2M1_NUMBERS",
    "E2M3",
    "E2M3_NUMBERS",
    "E4M3",
    "INT8",
    "Format",
    "elements",
    "fit_int8",
    "integers",
]


def _numbers(width: str, smallest: float) -> Tensor:
    """Return the numbers of a small floating-point format that are not negative, by their codes;
    the sign is one bit more.
    """
    unit = codebook_at(width, torch.tensor(0))
    levels = unit.unit_levels()[unit.zero :]
    return levels * (smallest / levels[1])


E2M1_NUMBERS = _numbers("fp4", 0.5)  # 0, 0.5, 1, 1.5, 2, 3, 4, 6
E2M3_NUMBERS = _numbers("fp6", 0.125)  # 0, 0.125, ..., 7.5


@dataclass(frozen=True)
class Format:
    """A number format of elements.

    Attributes:
        name: its usual name.
        exponents: the exponents that the largest level may have as an element, the best first.
        represents: tells for each of several numbers if it is a number of the format.

    """

    name: str
    exponents: Iterable[int]
    represents: Callable[[Tensor], Tensor]


def _in_e4m3(numbers: Tensor) -> Tensor:
    return (numbers.abs() <= 448) & (numbers.to(torch.float8_e4m3fn).float() == numbers)


E2M1 = Format(
    "FP4 E2M1", range(2, -2, -1), lambda numbers: torch.isin(numbers.abs(), E2M1_NUMBERS)
)  # OCP MX 1.0, 5.3.3
E2M3 = Format(
    "FP6 E2M3", range(2, -4, -1), lambda numbers: torch.isin(numbers.abs(), E2M3_NUMBERS)
)  # OCP MX 1.0, 5.3.2
E4M3 = Format("FP8 E4M3", range(8, -10, -1), _in_e4m3)  # down to its smallest subnormal number
INT8 = Format(
    "int8", range(8), lambda numbers: (numbers.abs() <= 128) & (numbers == numbers.round())
)  # +128: see integers


def elements(codebook: Codebook, codes: Tensor, form: Format, name: str) -> tuple[Tensor, Tensor]:
    """Split weights exactly into elements and scales: weight = element * scale.

    Args:
        codebook: the levels of the weights.
        codes: the codes of the weights, output channels first.
        form: the format of the elements.
        name: the name of the layer in errors.

    Returns:
        The elements, float32 numbers of the format ``form``, in the shape of ``codes``; and the
        scales, float32 powers of two, in the shape of the codebook's ``max_exponent``.

    Raises:
        ExportError: the format does not represent all levels, or a scale is too small for float32.

    """
    levels = codebook.unit_levels()
    exponent = next(
        (e for e in form.exponents if bool(form.represents(levels * 2.0**e).all())), None
    )
    if exponent is None:
        raise ExportError(
            f"{name}: {form.name} does not hold the {len(levels)} levels of its width, "
            f"{codebook.width}"
        )
    smallest = int(codebook.max_exponent.min())
    if smallest - exponent < SMALLEST:
        raise ExportError(
            f"{name}: its exponent {smallest} is too small for a scale of {form.name}"
        )
    element = (levels * 2.0**exponent)[codes.int()]
    return element, power(codebook.max_exponent - exponent)


def integers(codebook: Codebook, codes: Tensor, name: str) -> tuple[Tensor, Tensor, bool]:
    """Split weights into int8 numbers and a float32 scale for each output channel.

    This is exact where all numbers fit int8, and where :func:`fit_int8` rounds none of them: all
    widths but powers of two at 5 bits, where +128 is one too many, and groups of inputs whose
    exponents differ a lot.

    Returns:
        The numbers, the scales, and True if number * scale equals every weight.

    Raises:
        ExportError: int8 does not represent the levels.

    """
    element, scale = elements(codebook, codes, INT8, name)
    element = element.double()
    if codebook.group_size:  # integers in units of the smallest scale of each channel
        smallest = scale.amin(1)
        multiple = scale.double() / smallest.unsqueeze(1)
        element = element * spread(multiple, codes.shape, codebook.group_size)
        scale = smallest
    numbers, divisor, exact = fit_int8(element)
    return numbers, (scale * divisor).float(), exact


def fit_int8(wanted: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Bring integers into the range of int8, from -128 to 127.

    Where the largest number of a channel does not fit int8, all its numbers are halved, as often as
    it takes, and rounded; a half becomes 1. (127 instead of 128 is worse: the largest weights would
    all err to one side.)

    Args:
        wanted: the integers as float64 numbers, output channels first.

    Returns:
        The int8 numbers; the power of two that each channel was divided by, float64 (channels,);
        and True if no number was rounded.

    """
    rows = wanted.flatten(1)
    share_of_room = torch.maximum(rows.amax(1) / 127, rows.amin(1) / -128)  # (channels,)
    halvings = share_of_room.clamp(min=1).log2().ceil()
    divisor = 2**halvings
    exact_numbers = wanted / divisor.view(-1, *[1] * (wanted.dim() - 1))
    numbers = wanted.sign() * (exact_numbers.abs() + 0.5).floor()
    return numbers.to(torch.int8), divisor, bool((numbers == exact_numbers).all())
