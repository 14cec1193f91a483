"""Weights as elements of the number formats that hardware and runtimes read: small numbers times a
power-of-two scale.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.formats.codebook import SMALLEST, Codebook, power

__all__ = ["E2M1", "E2M1_NUMBERS", "E4M3", "INT8", "Format", "elements", "integers"]

E2M1_NUMBERS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # by code; negative ones are 8 further on


@dataclass(frozen=True)
class Format:
    """A number format of elements.

    Attributes:
        name: what people call it.
        tops: the exponents that n1 may become, the best first.
        holds: whether it holds each of some numbers.

    """

    name: str
    tops: Iterable[int]
    holds: Callable[[Tensor], Tensor]


def _in_e4m3(numbers: Tensor) -> Tensor:
    return (numbers.abs() <= 448) & (numbers.to(torch.float8_e4m3fn).float() == numbers)


E2M1 = Format(
    "FP4 E2M1", range(2, -2, -1), lambda numbers: torch.isin(numbers.abs(), E2M1_NUMBERS)
)  # OCP MX 1.0, 5.3.3
E4M3 = Format("FP8 E4M3", range(8, -10, -1), _in_e4m3)  # down to its smallest subnormal number
INT8 = Format(
    "int8", range(8), lambda numbers: (numbers.abs() <= 128) & (numbers == numbers.round())
)  # +128: see integers


def elements(codebook: Codebook, codes: Tensor, form: Format, name: str) -> tuple[Tensor, Tensor]:
    """The weights as float32 numbers that ``form`` holds, and float32 scales, both exact: weight =
    element * scale.

    Args:
        codebook: levels of the weights.
        codes: output channels first.
        form: the format.
        name: what errors call the tensor.

    Returns:
        Elements in the shape of ``codes``; scales in that of the codebook's ``top``, powers of two.

    Raises:
        ExportError: the format does not hold all levels, or a scale would be no float32.

    """
    levels = codebook.unit_levels()
    top = next((top for top in form.tops if bool(form.holds(levels * 2.0**top).all())), None)
    if top is None:
        raise ExportError(
            f"{name}: {form.name} does not hold the {len(levels)} levels of its width, {codebook.width}"
        )
    if int(codebook.max_exponent.min()) - top < SMALLEST:
        raise ExportError(
            f"{name}: its exponent {int(codebook.max_exponent.min())} is too small for a scale of {form.name}"
        )
    return (levels * 2.0**top)[codes.int()], power(codebook.max_exponent - top)


def integers(codebook: Codebook, codes: Tensor, name: str) -> tuple[Tensor, Tensor, bool]:
    """The weights as int8 numbers and a float32 scale for each output channel, and whether that is
    exact.

    It is, but for powers of two at 5 bits, where +128 is one too many: in the channels that use it
    all numbers are halved, and the smallest, which would be a half, stays 1. (127 in place of 128
    is worse: the largest weights all err to one side.)

    Raises:
        ExportError: int8 does not hold the levels.

    """
    element, scale = elements(codebook, codes, INT8, name)
    over = element.flatten(1).amax(1) > 127
    wide = over.view(-1, *[1] * (element.dim() - 1))
    halved = torch.where(wide, element.sign() * (element / 2).abs().ceil(), element)
    exact = bool((halved == torch.where(wide, element / 2, element)).all())
    return halved.to(torch.int8), scale * torch.where(over, 2.0, 1.0), exact
