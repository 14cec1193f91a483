"""What there is to search in a network: the layers that inputs reach, in forward order, and what is
known of each.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from octavo.activations.quantizer import input_quantizers
from octavo.dnq.space import Space, layer_options
from octavo.errors import BudgetError, PlanError
from octavo.formats.powers_of_two import check_bits
from octavo.formats.width import FLOAT, Both, by_size
from octavo.network.calling import Inputs, call, hooked, observing
from octavo.network.layers import (
    Layer,
    calling_modules,
    channels_first,
    find_inputs,
    find_layers,
)
from octavo.network.macs import count_macs
from octavo.plan import Budget

__all__ = ["survey"]


def survey(
    model: nn.Module,
    batch: Inputs,
    options: Sequence[int],
    pins: Mapping[str, int],
    budget: Budget | None = None,
    activations: Sequence[int] | None = None,
) -> Space:
    """The space of a network's plans.

    Args:
        model: the trained network.
        batch: inputs that it is called with, on its device.
        options: the bits that layers may get.
        pins: layers whose bits are given.
        budget: what a plan may cost.
        activations: the bits that the inputs of layers may get, where they can be quantized; None:
            they stay as they are.

    Raises:
        PlanError: no layer that inputs reach, options that are no bits, an unknown pin, or no
            inputs to quantize.
        BudgetError: no plan is within the budget, or it is not one of ``bit_ops`` where there are
            ``activations``.

    """
    if activations is not None and (budget is None or budget.bit_ops is None):
        raise BudgetError(
            f"activations: expected a budget of bit_ops, which counts them, got {budget or 'none'}"
        )
    layers, macs = _in_forward_order(model, batch)
    names = tuple(layer.name for layer in layers)
    kinds = sorted({layer.kind for layer in layers})
    widths = layer_options(names, options, pins)
    return Space(
        names,
        widths if activations is None else _with_inputs(model, layers, widths, activations),
        tuple(layer.weight.numel() for layer in layers),
        tuple(macs[name] for name in names),
        budget,
        tuple(
            (math.log(_fan_in(layer)), *(float(layer.kind == kind) for kind in kinds))
            for layer in layers
        ),
    )


def _with_inputs(
    model: nn.Module,
    layers: Sequence[Layer],
    widths: Sequence[Sequence[int]],
    activations: Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    """The options of each layer's weights with each of its inputs'; those of a weight in several
    places stay in float.
    """
    for bits in activations:
        check_bits(bits, "activations")
    for name in input_quantizers(model):
        raise PlanError(
            f"{name or 'the model itself'}: its inputs are quantized already; remove_quantizers(model) first"
        )
    modules = find_inputs(model)[0]
    free = [modules.get(layer.name) is layer.module and len(layer.places) == 1 for layer in layers]
    if not activations or not any(free):
        what = (
            "layers whose inputs can be quantized, found none"
            if activations
            else "at least one number of bits, got none"
        )
        raise PlanError(f"activations: expected {what}")
    inputs = [activations if own else (FLOAT,) for own in free]
    return tuple(
        tuple(
            sorted({Both(width, bits) for width in of_weights for bits in of_inputs}, key=by_size)
        )
        for of_weights, of_inputs in zip(widths, inputs, strict=True)
    )


def _fan_in(layer: Layer) -> int:
    rows = channels_first(layer.weight, layer.groups)
    return rows.numel() // len(rows)


def _in_forward_order(model: nn.Module, batch: Inputs) -> tuple[list[Layer], dict[str, int]]:
    """The layers that the inputs reach, in the order in which they do, and what one input spends on
    each.
    """
    layers, seen = find_layers(model)[0], list[Layer]()
    by_module = calling_modules(model, layers)
    hooks = [
        module.register_forward_pre_hook(lambda m, _: seen.extend(by_module[m]))
        for module in by_module
    ]
    example = batch[:1] if isinstance(batch, Tensor) else batch
    with hooked(hooks), observing(model):
        macs = count_macs(layers, lambda: call(model, example))
    reached = list(dict.fromkeys(layer.name for layer in seen))
    if not reached:
        raise PlanError(
            f"{type(model).__name__}: expected a model with layers that can be quantized, found none that inputs reach"
        )
    known = {layer.name: layer for layer in layers}
    return [known[name] for name in reached], macs
