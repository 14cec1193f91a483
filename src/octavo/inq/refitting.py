"""Freeze a portion of each layer in forward order, and refit the weights that are still free to the
outputs that the layer had in full precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from octavo.inq.partition import FreezeOrder
from octavo.inq.planned_layer import LayerState, PlannedLayer, restore, state_of
from octavo.network.copies import copied
from octavo.network.forward import Inputs, observing
from octavo.network.layers import Layer
from octavo.network.moments import Moments
from octavo.network.parametrizations import release, trained_weight
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.site import Site

__all__ = ["Freezing", "freeze_and_refit"]

# A layer whose free weights are refitted freezes its portion in so many equal pieces, so that the
# weights of the later pieces compensate for those of the earlier ones.
PIECES = 8


@dataclass(frozen=True)
class Freezing:
    """The way in which a stage freezes.

    Attributes:
        stage: the number of the stage, from 0.
        earlier: accumulated share of the weights that is frozen before it.
        portion: the same after it.
        order: the order in which weights freeze.
        seed: the seed of the order ``"random"``.

    """

    stage: int
    earlier: float
    portion: float
    order: FreezeOrder
    seed: int

    @property
    def steps(self) -> list[float]:
        """The accumulated shares of the pieces of the portion."""
        size = self.portion - self.earlier
        pieces = [self.earlier + size * piece / PIECES for piece in range(1, PIECES)]
        return [*pieces, self.portion]


def freeze_and_refit(
    model: nn.Module,
    layers: Sequence[PlannedLayer],
    inputs: Sequence[Inputs],
    freezing: Freezing,
    frozen: Callable[[int, str], object],
) -> set[str]:
    """Freeze the portion of a stage, piece by piece, in every layer that the inputs reach.

    Args:
        model: the network, with a parametrization on each layer.
        layers: its planned layers.
        inputs: batches that the model is called with.
        freezing: how the stage freezes.
        frozen: called after each layer with the number of layers so far and the layer's name.

    Returns:
        The names of the layers that were reached.

    """
    planned = {layer.name: layer for layer in layers}
    refitted: list[str] = []

    def freeze(copy: Layer, moments: Moments, site: Site | None) -> None:
        layer = planned[copy.name]
        start = state_of(layer)
        generator = layer.generator(freezing.seed, freezing.stage)
        layer.freeze_and_refit(freezing.steps, moments, freezing.order, generator)
        if site is not None and not site.is_described:
            _freeze_as_it_is(layer, freezing, start, site)
        copy.weight.copy_(trained_weight(layer.layer))  # the layers behind see its new outputs
        refitted.append(layer.name)
        frozen(len(refitted), layer.name)

    full, _ = _plain_copy(model, [layer.layer for layer in layers])
    quantized, copies = _plain_copy(model, [layer.layer for layer in layers])
    with observing(full), observing(quantized):
        freeze_sequentially(full, quantized, copies, inputs, freeze)
    return set(refitted)


def _freeze_as_it_is(
    layer: PlannedLayer, freezing: Freezing, start: LayerState, site: Site
) -> None:
    """Freeze a layer that was refitted again from where it started, without a refit, unless that is
    worse: refitting trusts that the layer multiplies its inputs with its weight.
    """
    refitted = state_of(layer)
    error = site.error(refitted.weight)
    restore(layer, start)
    generator = layer.generator(freezing.seed, freezing.stage)
    layer.freeze(freezing.portion, freezing.order, generator)
    if site.error(trained_weight(layer.layer)) >= error:
        restore(layer, refitted)


def _plain_copy(model: nn.Module, layers: list[Layer]) -> tuple[nn.Module, list[Layer]]:
    """Copy a model as it is now, with its layers, and fold the copy back to plain modules:
    recurrent layers read parametrized weights ahead of a call.
    """
    model, layers = copied((model, layers))
    release(layers)
    return model, layers
