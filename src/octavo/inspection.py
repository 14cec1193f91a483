"""The look before the leap: what of a model can be quantized, what not and why, and which budgets
are feasible.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from octavo.activations.quantizer import input_quantizers
from octavo.formats.width import WidthLike
from octavo.network.calling import call, observing
from octavo.network.layers import Layer, Skipped, find_inputs, find_layers
from octavo.network.macs import count_macs
from octavo.plan import Cost, Plan

__all__ = ["Inspection", "Row", "inspect"]


@dataclass(frozen=True)
class Row:
    """One layer that can be quantized: ``macs`` is None without an example, ``tied`` names the
    other places of its weight, ``activation_bits`` is None where its inputs are in float.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    macs: int | None
    tied: tuple[str, ...]
    activation_bits: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found.

    Attributes:
        rows: the layers that can be quantized, in registration order.
        skipped: the parameters that stay in float, with the reason.
        cheapest: cost of 2 bits everywhere: no budget below it can be met; None without layers.
        dearest: cost of 8 bits everywhere.
        float_inputs: the layers whose inputs cannot be quantized, with the reason.

    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    cheapest: Cost | None
    dearest: Cost | None
    float_inputs: tuple[Skipped, ...] = ()

    def plan(self, bits: WidthLike) -> Plan:
        """The uniform plan, which knows each layer's weights and, after an example, its
        multiply-accumulates.
        """
        macs = {row.name: row.macs for row in self.rows if row.macs is not None}
        weights = {row.name: row.weights for row in self.rows}
        return Plan(dict.fromkeys(weights, bits), weights=weights, macs=macs)


def inspect(model: nn.Module, example: Any = None) -> Inspection:
    """What of ``model`` can be quantized; the model is not changed.

    Args:
        model: any module.
        example: what the model is called with, to count multiply-accumulates: a tensor, or a tuple
            or dict of arguments.

    """
    layers, skipped = find_layers(model)
    macs = {} if example is None else count_macs(layers, _forward(model, example))
    bits = {
        model.get_submodule(name): quantizer.format.bits
        for name, quantizer in input_quantizers(model).items()
    }
    rows = tuple(_row(layer, macs.get(layer.name), bits.get(layer.module)) for layer in layers)
    found = Inspection(rows, tuple(skipped), None, None, tuple(find_inputs(model)[1]))
    if not rows:
        return found
    return replace(found, cheapest=found.plan(2).cost(), dearest=found.plan(8).cost())


def _row(layer: Layer, macs: int | None, bits: int | None) -> Row:
    tied = tuple(full for full, *_ in layer.tied)
    return Row(
        layer.name, layer.kind, tuple(layer.weight.shape), layer.weight.numel(), macs, tied, bits
    )


def _forward(model: nn.Module, example: Any) -> Callable[[], object]:
    def forward() -> object:
        with observing(model):
            return call(model, example)

    return forward
