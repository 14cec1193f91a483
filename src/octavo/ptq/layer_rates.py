"""The worth of a bit in each layer, by what the layer's error does to the network's outputs.

Let ``D_l`` be the divergence of the outputs from full precision while layer ``l``, of ``N_l``
weights, is at its nearest levels and all others are in full precision. The rate of the layer is::

    lambda_l = lambda * sqrt((N_l / D_l) / (N / D))          N = sum_l N_l,  D = sum_l D_l

Without the root, a bit would be worth the same divergence everywhere, if errors in different layers
added up and none made up for another. They do not quite: layers behind are solved for what layers
ahead have lost. With the root, half of the difference counts. The root is our choice, made on
training images of CIFAR-10, with ResNet-20. ``benchmarks/rate_shares.py`` compares it with other
powers at equal bytes: of two sizes, it is best at one and a power of 0.25 at the other.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.formats.width import Width
from octavo.network.conduct import conduct_of
from octavo.network.divergence import Divergence
from octavo.network.forward import Inputs, check_batches
from octavo.network.layers import Layer
from octavo.ptq.measuring import nearest_levels
from octavo.ptq.settings import PtqSettings

__all__ = ["factors_of_layers", "rates_of_layers"]

MOST = 8.0  # how far the rate of a layer may be from the network's, as a factor


def rates_of_layers(
    network: nn.Module,
    planned: Sequence[tuple[Layer, Width]],
    batches: Sequence[Inputs],
    settings: PtqSettings,
) -> dict[str, float]:
    """Return the rate of each layer, by name: that of the settings times its factor."""
    if not settings.rate:
        return {layer.name: 0.0 for layer, _ in planned}
    factors = factors_of_layers(network, planned, batches, settings)
    return {name: settings.rate * factor for name, factor in factors.items()}


def factors_of_layers(
    network: nn.Module,
    planned: Sequence[tuple[Layer, Width]],
    batches: Sequence[Inputs],
    settings: PtqSettings,
) -> dict[str, float]:
    """Return the rate of each layer as a share of the network's, by name: 1 where layers cannot be
    compared.

    Args:
        network: the network in full precision; it is left as it was.
        planned: its layers, with their widths.
        batches: inputs that the layers are compared on.
        settings: how exponents are chosen.

    Raises:
        PlanError: there is no batch.

    """
    check_batches(len(batches))
    factors = {layer.name: 1.0 for layer, _ in planned}
    if len(planned) < 2:
        return factors
    lost = _divergences(network, planned, batches, settings)
    sizes = {layer.name: layer.weight.numel() for layer, _ in planned}
    whole = sum(lost.values()) / sum(sizes.values())  # D / N
    if not 0 < whole < math.inf:
        return factors
    for name, divergence in lost.items():
        share = divergence / sizes[name] / whole
        factors[name] = MOST if share <= 0 else min(MOST, max(1 / MOST, share**-0.5))
    return factors


@torch.no_grad()
def _divergences(
    network: nn.Module,
    planned: Sequence[tuple[Layer, Width]],
    batches: Sequence[Inputs],
    settings: PtqSettings,
) -> dict[str, float]:
    """Return the divergence that each layer causes alone, by name; none where outputs cannot be
    compared.
    """
    try:
        conduct = conduct_of(network, batches)
        if not conduct.repeats:  # then even full precision is far from itself
            return {}
        divergence = Divergence(network, batches, conduct)
        lost = {}
        for layer, width in planned:
            nearest = nearest_levels(layer, layer.weight, width, settings.per)
            lost[layer.name] = _divergence(network, layer, nearest, divergence)
        return lost
    except PlanError:  # the network returns nothing to compare
        return {}


def _divergence(network: nn.Module, layer: Layer, weight: Tensor, divergence: Divergence) -> float:
    """Return the divergence of the network while a layer has another weight."""
    own = layer.weight.clone()
    try:
        layer.weight.copy_(weight)
        return -divergence.of(network)
    finally:
        layer.weight.copy_(own)
