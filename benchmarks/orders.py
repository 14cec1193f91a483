"""An order of freezing that exists only to be compared with octavo's own.

A recipe names it as ``order: orders.py:far``, see benchmarks/resnet20-order-far.yaml.
"""

from torch import Tensor

from octavo.formats.codebook import Codebook


def far(weight: Tensor, codebook: Codebook) -> Tensor:
    """Rank the weights farthest from their level first: the reverse of the order ``distance``.

    It is the worst of the orders that were compared: 88.71 % on ResNet-20 at 3 bits, where
    ``distance`` reaches 89.57 % and ``relative`` 90.04 % (docs/results.md).
    """
    return (weight.detach().float() - codebook.project(weight)).abs()
