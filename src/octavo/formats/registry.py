"""The table of all codebooks: from the name in a ``Width`` to what makes the codebook.

A new codebook needs a file with its levels, a line here, and its bits in ``octavo.formats.width``.
"""

import functools
from collections.abc import Callable, Mapping

from torch import Tensor

from octavo.formats.codebook import Codebook
from octavo.formats.fitting import Fit, Per, fitted
from octavo.formats.floats import floats
from octavo.formats.integers import integers
from octavo.formats.level_table import LevelTable, TableCodebook
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.sums_of_powers import sums_of_powers
from octavo.formats.width import WidthLike, read_width

__all__ = ["CODEBOOKS", "codebook_at", "fitted_codebook", "with_exponents"]

Make = Callable[[int, Tensor, int], Codebook]  # from bits, max_exponent and group_size


def _from_table(table: Callable[[int], LevelTable]) -> Make:
    return lambda bits, max_exponent, size: TableCodebook(table(bits), max_exponent, size)


CODEBOOKS: Mapping[str, Make] = {
    "power_of_two": PowerOfTwo,
    "apot": _from_table(sums_of_powers),
    "fp": _from_table(floats),
    "int": _from_table(integers),
}


def codebook_at(width: WidthLike, max_exponent: Tensor, group_size: int = 0) -> Codebook:
    """Return the codebook of a width that has these exponents: (channels, groups) if there are
    groups of inputs.
    """
    width = read_width(width)
    return CODEBOOKS[width.codebook](width.bits, max_exponent, group_size)


def with_exponents(codebook: Codebook, max_exponent: Tensor) -> Codebook:
    """Return the same kind of codebook with other exponents, of the same shape."""
    return codebook_at(codebook.width, max_exponent, codebook.group_size)


def fitted_codebook(
    weight: Tensor,
    width: WidthLike,
    *,
    fit: Fit,
    per: Per,
    importance: Tensor | None = None,
    name: str = "weight",
) -> Codebook:
    """Return the codebook of a width for ``weight``.

    The arguments and the errors are those of ``octavo.formats.powers_of_two.power_of_two``.
    """
    make = functools.partial(codebook_at, read_width(width))
    return fitted(weight, make, fit=fit, per=per, importance=importance, name=name)
