"""Sensitivity: what each layer alone loses at each of its actions, all others in full precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from octavo.dnq.space import Action, Partial
from octavo.network.outputs import Part

__all__ = ["Sensitivity", "full_and_single", "loss_table", "single_layer_choices"]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The measurements of all choices that quantize a single layer.

    Attributes:
        losses: what the objective loses, (layers, actions); NaN where a layer has fewer actions.
        full: the first rows of each part of the outputs in full precision.
        changed: by layer and action, the same rows of each part where that layer alone is
            quantized.

    Both ``full`` and ``changed`` are empty where the objective is not a function of the outputs.

    """

    losses: np.ndarray
    full: tuple[Part, ...] = ()
    changed: Mapping[tuple[int, int], tuple[Tensor, ...]] = field(default_factory=dict)


def single_layer_choices(actions: Sequence[Sequence[Action]]) -> dict[tuple[int, int], Partial]:
    """Return, by layer and action, the choice that quantizes that layer alone."""
    layers = range(len(actions))
    return {
        (layer, action): tuple(action if other == layer else None for other in layers)
        for layer in layers
        for action in range(len(actions[layer]))
    }


def full_and_single(actions: Sequence[Sequence[Action]]) -> list[Partial]:
    """Return the choice of full precision, and then those of :func:`single_layer_choices`."""
    return [(None,) * len(actions), *single_layer_choices(actions).values()]


def loss_table(actions: Sequence[Sequence[Action]], losses: Sequence[float]) -> np.ndarray:
    """Return losses, one for each layer and action in turn, as a table (layers, actions)."""
    table = np.full((len(actions), max(map(len, actions))), np.nan)
    for (layer, action), loss in zip(single_layer_choices(actions), losses, strict=True):
        table[layer, action] = loss
    return table
