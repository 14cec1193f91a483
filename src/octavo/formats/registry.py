"""Which codebook a width stands for: the one place that knows all grids."""

from torch import Tensor

from octavo.formats.codebook import Codebook, Fit, Per
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.formats.sums_of_powers import AdditivePowers, additive_powers
from octavo.formats.width import Apot

__all__ = ["codebook_at", "fitted_codebook"]


def codebook_at(width: int, top: Tensor) -> Codebook:
    """The codebook of a width with its exponents n1."""
    return AdditivePowers(width, top) if isinstance(width, Apot) else PowerOfTwo(width, top)


def fitted_codebook(
    weight: Tensor,
    width: int,
    *,
    fit: Fit,
    per: Per,
    importance: Tensor | None = None,
    name: str = "weight",
) -> Codebook:
    """The codebook of a width for ``weight``: see ``octavo.formats.powers_of_two.power_of_two``,
    whose arguments and errors these are.
    """
    make = additive_powers if isinstance(width, Apot) else power_of_two
    return make(weight, width, fit=fit, per=per, importance=importance, name=name)
