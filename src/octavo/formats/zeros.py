"""The difference between pruned weights and zeros that are levels."""

import torch
from torch import Tensor

__all__ = ["pruned_mask"]

CHANCE = 1e-3  # share of zeros that trained weights may have by chance, as underflow leaves them
MANTISSA_BITS = 24  # of float32, the leading one included
# The significant bits of the finest levels, those of int8. Weights that were trained have more: 8
# in bfloat16, 11 in float16.
LEVEL_BITS = 7


def pruned_mask(weight: Tensor) -> Tensor:
    """Return the weights that are taken to be pruned: bool, same shape.

    They are all that are exactly zero, because training leaves few such weights: a share below
    ``CHANCE`` is taken for these few, and none is pruned. Nor is any where every other weight has
    as few significant bits as the levels of a codebook: such a layer was quantized before, and zero
    is one of its levels.
    """
    is_zero = weight.detach() == 0
    zeros = int(is_zero.count_nonzero())
    if zeros == weight.numel():
        return is_zero
    if zeros < CHANCE * weight.numel() or _is_quantized(weight.detach().float()):
        return torch.zeros_like(is_zero)
    return is_zero


def _is_quantized(weight: Tensor) -> bool:
    """Tell whether every weight may be a level of some codebook, times a power of two."""
    mantissa = (torch.frexp(weight).mantissa.abs() * 2**MANTISSA_BITS).int()
    beyond = (1 << (MANTISSA_BITS - LEVEL_BITS)) - 1  # the bits that no level has
    return not bool((mantissa & beyond).any())
