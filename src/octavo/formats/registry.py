"""The table of all codebooks: from the name in a ``Width`` to the class and the fitting function.

A new codebook needs a file with these two, a line here, and its bits in ``octavo.formats.width``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from octavo.formats.codebook import Codebook, Fit, Per
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.formats.sums_of_powers import AdditivePowers, additive_powers
from octavo.formats.width import WidthLike, read_width

__all__ = ["CODEBOOKS", "codebook_at", "fitted_codebook"]


@dataclass(frozen=True)
class Kind:
    """A kind of codebook.

    Attributes:
        make: makes the codebook from its bits and its exponents; in practice, a class.
        fit: chooses the exponents for a weight: see ``octavo.formats.powers_of_two.power_of_two``.

    """

    make: Callable[[int, Tensor], Codebook]
    fit: Callable[..., Codebook]


CODEBOOKS = {
    "power_of_two": Kind(PowerOfTwo, power_of_two),
    "apot": Kind(AdditivePowers, additive_powers),
}


def codebook_at(width: WidthLike, max_exponent: Tensor) -> Codebook:
    """Return the codebook of a width that has these exponents."""
    width = read_width(width)
    return CODEBOOKS[width.codebook].make(width.bits, max_exponent)


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
    width = read_width(width)
    fit_kind = CODEBOOKS[width.codebook].fit
    return fit_kind(weight, width.bits, fit=fit, per=per, importance=importance, name=name)
