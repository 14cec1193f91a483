"""Tell pruned weights from zeros that are levels."""

import torch
from torch import Tensor

__all__ = ["pruned"]


def pruned(weight: Tensor) -> Tensor:
    """Which weights are taken to be pruned: bool, same shape: all that are exactly zero, for
    training leaves no such weight.

    Not so where every other weight is a power of two, or a sum or difference of two: there the
    layer was quantized before, and zero is one of its levels.
    """
    zero = weight.detach() == 0
    if not bool(zero.any()) or bool(zero.all()):
        return zero
    mantissa = (torch.frexp(weight.detach().float()).mantissa.abs() * 2**24).int()
    powers = mantissa ^ (
        3 * mantissa
    )  # a bit for each of the fewest powers that add up to it, signed (its non-adjacent form)
    others = powers & (powers - 1)
    return zero & bool((others & (others - 1)).any())
