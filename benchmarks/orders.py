"""Orders of freezing that are worth a comparison, but no place in the package.

A recipe names one as ``order: orders.py:far``; in Python it is ``Incremental(order=far)``.
"""

from torch import Tensor

from octavo.formats.codebook import Codebook


def far(weight: Tensor, codebook: Codebook) -> Tensor:
    """Rank the weights that are farthest from their level first, the opposite of ``"distance"``."""
    return (weight.float() - codebook.project(weight)).abs()
