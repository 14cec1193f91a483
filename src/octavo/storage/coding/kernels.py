"""The contexts of codes: what the codes ahead of a code in its kernel say about it.

The weights of a convolution kernel are alike: neighbours tend to have the same sign, and a kernel
of small weights stays small. So the positions of a kernel are coded one after another, each for all
kernels of the layer at once, and the table of a code depends on codes of the same kernel at earlier
positions.

Let ``s`` be a code less the code of zero. At position ``t`` of a kernel whose last dimension has
``w`` positions, let ``p`` be the sum of ``s`` at the position ``t - 1``, unless ``t`` is a multiple
of ``w``, and at ``t - w``, if there is one; and ``a`` the sum of ``|s|`` at all earlier positions.

- If ``p < 0``, the symbol is that of ``-s``, otherwise that of ``s``. Signs that go on are large
  symbols.
- The context is 0 if ``p = 0``, 1 if ``|p| <= near``, otherwise 2. It is 3 more in a kernel with
  ``16 a >= active * t``, where ``near`` and ``active`` are numbers of the layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTEXTS", "Contexts", "Signed", "in_kernels", "visited"]

CONTEXTS = 6
LARGEST = 255  # of the numbers of a layer: each is a byte

Signed: TypeAlias = NDArray[np.int16]


@dataclass(frozen=True)
class Contexts:
    """The numbers of a layer that contexts depend on.

    Attributes:
        near: see the module.
        active: see the module.

    """

    near: int
    active: int

    @classmethod
    def of(cls, signed: Signed) -> "Contexts":
        """Choose them by the mean of ``|s|``."""
        mean = float(np.abs(signed).mean())
        return cls(min(LARGEST, max(1, round(2 * mean))), min(LARGEST, round(16 * mean)))


def in_kernels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the number of kernels of a layer's codes, the positions of each, and those of its last
    dimension. The layer's shape has the output channels first.
    """
    positions = int(np.prod(shape[2:]))
    return int(np.prod(shape[:2])), positions, shape[-1] if len(shape) > 2 else 1


def visited(
    signed: Signed, width: int, contexts: Contexts
) -> Iterator[tuple[int, int, NDArray[np.intp], NDArray[np.int16]]]:
    """Go through the positions of all kernels and the contexts at each. What is yielded may be used
    to fill in the codes that have this context at this position, before the next is asked for.

    Args:
        signed: the codes less the code of zero, (positions, kernels).
        width: the positions of the kernel's last dimension.
        contexts: the numbers of the layer.

    Yields:
        The position, the context, the kernels that have it there, and a sign for each: -1 where
        ``s`` is negated.

    """
    positions, kernels = signed.shape
    activity = np.zeros(kernels, np.int32)
    for position in range(positions):
        ahead = np.zeros(kernels, np.int16)
        if position % width:
            ahead += signed[position - 1]
        if position >= width:
            ahead += signed[position - width]
        sign = np.where(ahead < 0, np.int16(-1), np.int16(1))
        size = np.abs(ahead)
        context = (size > 0).astype(np.int8) + (size > contexts.near)
        context += 3 * (16 * activity >= contexts.active * position).astype(np.int8)
        for index in range(CONTEXTS):
            here = np.flatnonzero(context == index)
            if here.size:
                yield position, index, here, sign[here]
        activity += np.abs(signed[position])
