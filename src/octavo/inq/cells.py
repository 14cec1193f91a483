"""The cells of a codebook's levels once the bits of codes count: entropy-constrained scalar
quantization (Chou, Lookabaugh and Gray, 1989).

With the rate ``lambda``, a weight ``w`` takes the level ``q`` of least::

    (w / s - q)^2 + worth * bits(q)             worth = lambda * E / 4

``s`` is the scale of its levels, a power of two for each row, and ``E`` the mean squared error that
normally distributed weights as large as the layer's have at their nearest levels, at the best
scale. So a bit less in every weight is worth ``lambda`` times the error; and a bit counts only a
quarter of that while weights freeze, as in ``octavo.ptq.pricing``. (The error of the weights
themselves says nothing where they were calibrated, and lie on their levels.)

The sum is a parabola of ``w / s`` for each level, and all have the same curvature. So the weights
that take a level are those of an interval, its cell, which may be empty. All that a rate changes is
the edges between the cells.

Where the second moment of the inputs is known, the squared error of a weight counts by its
curvature, as a share of the layer's mean: what it costs the outputs, see ``octavo.ptq.gptq``. Then
there are no cells, and each weight is compared with all levels.
"""

import functools

import torch
from torch import Tensor

from octavo.formats.codebook import Codebook
from octavo.formats.registry import fitted_codebook
from octavo.formats.width import Width
from octavo.ptq.layer_problem import SHARE
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes

__all__ = ["priced_codes", "priced_edges", "worth_of"]

SAMPLES = 1024  # normally distributed numbers that a codebook is measured on
STEPS = 8  # sizes of these within an octave


def worth_of(rate: float, width: Width, in_units: Tensor) -> float:
    """Return the squared error, in units of the scale, that a bit is worth in a layer.

    Args:
        rate: the rate; 0 makes bits worth nothing.
        width: the width of the layer.
        in_units: its weights in units of their scale, without pruned ones.

    """
    if not rate or not in_units.numel():
        return 0.0
    return SHARE * rate * _relative_error(width) * float(in_units.double().square().mean())


@functools.cache
def _relative_error(width: Width) -> float:
    """Return the mean squared error of normally distributed numbers at their nearest levels, in
    units of their mean square. Scales are powers of two, so it is an average over an octave.
    """
    ranks = torch.arange(SAMPLES, dtype=torch.float32, device="cpu")
    normal = torch.special.ndtri((ranks + 0.5) / SAMPLES)
    steps = torch.arange(STEPS, dtype=torch.float32, device="cpu")
    octave = 2 ** (steps / STEPS).unsqueeze(1)
    numbers = octave * normal  # (steps, samples)
    codebook = fitted_codebook(numbers, width, fit="mse", per="channel")
    error = (numbers - codebook.project(numbers)).square().mean(1)
    return float((error / numbers.square().mean(1)).mean())


def priced_edges(codebook: Codebook, codes: Tensor, worth: float) -> Tensor:
    """Return the edges between cells, for ``torch.bucketize(..., right=True)``, ascending.

    Args:
        codebook: the codebook of the layer.
        codes: the codes of all its weights, whose frequencies tell the bits of each code.
        worth: the squared error, in units of the scale, that a bit is worth.

    """
    levels = codebook.unit_levels().double().cpu()
    bits = bits_of_codes(codes, len(levels)).cpu()
    # The parabolas of a level k and a lower level j cross at (q_k + q_j) / 2 + slope / 2.
    slope = worth * (bits[:, None] - bits) / (levels[:, None] - levels)
    crossing = (levels[:, None] + levels + slope) / 2  # (levels k, levels j); used where j < k
    # Level k is better than all below i from where it has crossed them, and a weight lies beyond
    # the edge i from where some level k >= i is.
    crossed = crossing.cummax(1).values  # (k, i - 1)
    least = crossed.flip(0).cummin(0).values.flip(0)
    return least.diagonal(-1).float()


def priced_codes(
    in_units: Tensor, curvature: Tensor, codebook: Codebook, codes: Tensor, worth: float
) -> Tensor:
    """Return the codes of weights whose errors cost the outputs more or less: uint8.

    Args:
        in_units: the weights in units of their scale, (problems, rows, columns).
        curvature: what a squared error of each column costs, (problems, columns).
        codebook: the codebook of the layer.
        codes: the codes of all its weights, whose frequencies tell the bits of each code.
        worth: the squared error, in units of the scale, that a bit is worth on average.

    """
    levels = codebook.unit_levels().to(in_units.device)
    bits = bits_of_codes(codes, len(levels))
    price = torch.full((), worth, dtype=torch.float64, device=in_units.device)
    rounding = Rounding(levels, prices=Prices(bits.float(), price))
    return rounding.each(in_units.float(), (curvature / curvature.mean()).unsqueeze(1))
