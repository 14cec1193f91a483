"""A look at a model before anything is quantized: what can be quantized, what cannot and why, and
which budgets are feasible.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from octavo.activations.quantizer import input_quantizers
from octavo.formats.width import WidthLike
from octavo.network.calls import call_alone, undisturbed
from octavo.network.forward import naming_errors, observing
from octavo.network.layers import Layer, Skipped, find_inputs, find_layers
from octavo.network.macs import count_macs
from octavo.network.values import check_values
from octavo.plan import Cost, Plan

__all__ = ["Inspection", "Row", "inspect"]

FEWEST_BITS = 2
MOST_BITS = 8


@dataclass(frozen=True)
class Row:
    """One layer that can be quantized.

    Attributes:
        name: the layer's name in a plan.
        kind: its module's type, in lower case.
        shape: the shape of its weight.
        weights: the number of its weights.
        macs: multiply-accumulates that the example spends on it; None without an example.
        tied: full names of the other parameters that share its weight.
        activation_bits: bits of its inputs; None if they are in float.

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
    """The outcome of ``inspect``.

    Attributes:
        rows: the layers that can be quantized, in registration order.
        skipped: the parameters that stay in float, with the reason.
        cheapest: the cost of 2 bits everywhere, the least that a plan can cost; None without
            layers.
        dearest: the cost of 8 bits everywhere; None without layers.
        float_inputs: the layers whose inputs cannot be quantized, with the reason.

    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    cheapest: Cost | None
    dearest: Cost | None
    float_inputs: tuple[Skipped, ...] = ()

    def plan(self, bits: WidthLike) -> Plan:
        """Return the plan that gives ``bits`` to every layer.

        It knows the number of each layer's weights and, if there was an example, of its
        multiply-accumulates; so its ``cost`` has bit operations too.
        """
        macs = {row.name: row.macs for row in self.rows if row.macs is not None}
        weights = {row.name: row.weights for row in self.rows}
        return Plan(dict.fromkeys(weights, bits), weights=weights, macs=macs)


def inspect(model: nn.Module, example: Any = None) -> Inspection:
    """Say what of ``model`` can be quantized; the model is not changed.

    Args:
        model: any module.
        example: inputs that the model is called with once, to count multiply-accumulates: a tensor,
            or a tuple or dict of arguments. Without it, nothing is called.

    Raises:
        PlanError: the model does not take the example, or has no values to be called with.

    """
    if example is not None:
        check_values(model)
    layers, skipped = find_layers(model)
    macs = {} if example is None else count_macs(layers, _forward(model, example))
    activation_bits = {
        model.get_submodule(name): quantizer.format.bits
        for name, quantizer in input_quantizers(model).items()
    }
    rows = [
        _row(layer, macs.get(layer.name), activation_bits.get(layer.module)) for layer in layers
    ]
    _, float_inputs = find_inputs(model)
    inspection = Inspection(tuple(rows), tuple(skipped), None, None, tuple(float_inputs))
    if not rows:
        return inspection
    cheapest = inspection.plan(FEWEST_BITS).cost()
    dearest = inspection.plan(MOST_BITS).cost()
    return replace(inspection, cheapest=cheapest, dearest=dearest)


def _row(layer: Layer, macs: int | None, activation_bits: int | None) -> Row:
    return Row(
        layer.name,
        layer.kind,
        tuple(layer.weight.shape),
        layer.weight.numel(),
        macs,
        tuple(full for full, *_ in layer.tied),
        activation_bits,
    )


def _forward(model: nn.Module, example: Any) -> Callable[[], object]:
    def forward() -> object:
        with observing(model), naming_errors(model), undisturbed(model):
            return call_alone(model, example)

    return forward
