"""The cells of a codebook's levels once the bits of codes count: entropy-constrained scalar
quantization (Chou, Lookabaugh and Gray, 1989).

With the rate ``lambda``, a weight ``w`` takes the level ``q`` of least::

    (w / s - q)^2 + worth * bits(q)             worth = lambda * E / 4

``s`` is the scale of its levels, a power of two for each row, and ``E`` the mean squared error of
the layer's weights at their nearest levels, each in units of its scale. So a bit less in every
weight is worth ``lambda`` times the error, in each row in units of its own scale; and a bit counts
only a quarter of that while weights freeze, as in ``octavo.ptq.pricing``.

The sum is a parabola of ``w / s`` for each level, and all have the same curvature. So the weights
that take a level are those of an interval, its cell, which may be empty. All that a rate changes
is the edges between the cells.
"""

import torch
from torch import Tensor

from octavo.formats.codebook import Codebook, edges
from octavo.ptq.layer_problem import SHARE
from octavo.ptq.rounding import bits_of_codes

__all__ = ["priced_edges", "worth_of"]


def worth_of(rate: float, codebook: Codebook, codes: Tensor) -> float:
    """Return the squared error, in units of the scale, that a bit is worth in a layer.

    Weights that were calibrated lie on their levels, and have no error of their own. So ``E`` is
    the error that weights have which are spread evenly over the cells of their levels.

    Args:
        rate: the rate; 0 makes bits worth nothing.
        codebook: the codebook of the layer.
        codes: the codes of its nearest levels, without those of pruned weights.

    """
    if not rate or not codes.numel():
        return 0.0
    levels = codebook.unit_levels().double()
    outer = torch.tensor([codebook.reach.edge], dtype=torch.float64)
    between = torch.cat([-outer, edges(levels), outer])
    above = between[1:] - levels
    below = levels - between[:-1]
    error = (above**3 + below**3) / (3 * (above + below))  # mean square from -below to above
    counts = torch.bincount(codes.flatten().int(), minlength=len(levels)).cpu()
    mean = (counts * error).sum() / counts.sum()
    return SHARE * rate * float(mean)


def priced_edges(codebook: Codebook, codes: Tensor, worth: float) -> Tensor:
    """Return the edges between cells, for ``torch.bucketize(..., right=True)``, ascending.

    Args:
        codebook: the codebook of the layer.
        codes: the codes of all its weights, whose frequencies tell the bits of each code.
        worth: the squared error, in units of the scale, that a bit is worth.

    """
    levels = codebook.unit_levels().double()
    bits = bits_of_codes(codes, len(levels)).cpu()
    # The parabolas of a level k and a lower level j cross at (q_k + q_j) / 2 + slope / 2.
    slope = worth * (bits[:, None] - bits) / (levels[:, None] - levels)
    crossing = (levels[:, None] + levels + slope) / 2  # (levels k, levels j); used where j < k
    # Level k is better than all below i from where it has crossed them, and a weight lies beyond
    # the edge i from where some level k >= i is.
    crossed = crossing.cummax(1).values  # (k, i - 1)
    least = crossed.flip(0).cummin(0).values.flip(0)
    return least.diagonal(-1).float()
