"""The difference between pruned weights and zeros that are levels."""

import torch
from torch import Tensor

__all__ = ["pruned_mask"]

CHANCE = 1e-3  # share of zeros that trained weights may have by chance, as underflow leaves them
MANTISSA_BITS = 24  # of float32, the leading one included


def pruned_mask(weight: Tensor) -> Tensor:
    """Return the weights that are taken to be pruned: bool, same shape.

    They are all that are exactly zero, because training leaves few such weights: a share below
    ``CHANCE`` is taken for these few, and none is pruned. Nor is any where every other weight is a
    power of two, or a sum or a difference of two: such a layer was quantized before, and zero is
    one of its levels.
    """
    is_zero = weight.detach() == 0
    zeros = int(is_zero.count_nonzero())
    if zeros == weight.numel():
        return is_zero
    if zeros < CHANCE * weight.numel() or _is_quantized(weight.detach().float()):
        return torch.zeros_like(is_zero)
    return is_zero


def _is_quantized(weight: Tensor) -> bool:
    """Tell whether every weight is a sum or difference of at most two powers of two."""
    mantissa = (torch.frexp(weight).mantissa.abs() * 2**MANTISSA_BITS).int()
    # The non-adjacent form of n writes it with the fewest signed powers of two. The bits of
    # n XOR 3n are where it has them, one place up.
    powers = mantissa ^ (3 * mantissa)
    without_one = powers & (powers - 1)  # clears the lowest bit
    without_two = without_one & (without_one - 1)
    return not bool(without_two.any())
