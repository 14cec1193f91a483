"""The exponents of groups as a file has them: the largest of each channel, and for each group the
number of octaves below it.

Channels differ in scale, but the groups of a channel hardly do, so that these numbers are small.
"""

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.width import Width

__all__ = ["DROPS", "joined", "split"]

DROPS = Width(8, "int")  # the width that the coder takes them for: up to 255 different ones


def split(max_exponent: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the largest exponent of each channel, and for each group how far it lies below: uint8,
    the shape of ``max_exponent``, (channels, groups).

    Raises:
        PlanError: a group lies too far below for a byte.

    """
    largest = max_exponent.amax(1)
    drops = largest.unsqueeze(1) - max_exponent
    if int(drops.max()) >= DROPS.level_count:
        raise PlanError(
            f"{name}: expected the exponents of a channel's groups within {DROPS.level_count - 1} "
            f"of each other, got {int(drops.max())}; use per='channel'"
        )
    return largest, drops.to(torch.uint8)


def joined(largest: Tensor, drops: Tensor) -> Tensor:
    """Undo :func:`split`."""
    return largest.unsqueeze(1) - drops.to(largest.dtype)
