"""What there is to search in a network: the layers that inputs reach, in forward order, and what is known of each."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from octavo.calling import Inputs, call, hooked, observing
from octavo.errors import PlanError
from octavo.layers import Layer, calling_modules, channels_first, count_macs, find_layers
from octavo.plan import Budget
from octavo.search.space import Space, layer_options

__all__ = ["survey"]


def survey(
    model: nn.Module, batch: Inputs, options: Sequence[int], pins: Mapping[str, int], budget: Budget | None = None
) -> Space:
    """The space of a network's plans.

    Args:
        model: the trained network.
        batch: inputs that it is called with, on its device.
        options: the bits that layers may get.
        pins: layers whose bits are given.
        budget: what a plan may cost.

    Raises:
        PlanError: no layer that inputs reach, options that are no bits, or an unknown pin.
        BudgetError: no plan is within the budget.

    """
    layers, macs = _in_forward_order(model, batch)
    names = tuple(layer.name for layer in layers)
    kinds = sorted({layer.kind for layer in layers})
    return Space(
        names,
        layer_options(names, options, pins),
        tuple(layer.weight.numel() for layer in layers),
        tuple(macs[name] for name in names),
        budget,
        tuple((math.log(_fan_in(layer)), *(float(layer.kind == kind) for kind in kinds)) for layer in layers),
    )


def _fan_in(layer: Layer) -> int:
    rows = channels_first(layer.weight, layer.groups)
    return rows.numel() // len(rows)


def _in_forward_order(model: nn.Module, batch: Inputs) -> tuple[list[Layer], dict[str, int]]:
    """The layers that the inputs reach, in the order in which they do, and what one input spends on each."""
    layers, seen = find_layers(model)[0], list[Layer]()
    by_module = calling_modules(model, layers)
    hooks = [module.register_forward_pre_hook(lambda m, _: seen.extend(by_module[m])) for module in by_module]
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
