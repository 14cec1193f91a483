"""Freeze layers from their full-precision inputs: one pass of the network as it is shows all of
them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from octavo.network.calls import feed
from octavo.network.forward import Inputs, hooked
from octavo.network.layer_inputs import layer_inputs
from octavo.network.layers import Layer, calling_modules
from octavo.network.moments import Moments
from octavo.network.reach import check_reached
from octavo.ptq.site import Site

__all__ = ["Freeze", "float_moments", "freeze_from_float"]

Outcome = TypeVar("Outcome")

# Freezes a layer in place, from the moments of its inputs. Where all batches can wait at the layer,
# its site is given too.
Freeze: TypeAlias = Callable[[Layer, Moments, Site | None], Outcome]


def float_moments(
    model: nn.Module,
    inputs: Iterable[Inputs],
    layers: Sequence[Layer],
    spare: Collection[Inputs] = (),
) -> dict[str, Moments]:
    """Collect the moments of the layers' inputs, by layer name, in one pass of the model as it is.

    Inputs are streamed: memory does not grow with their number.

    Args:
        model: the model.
        inputs: calibration inputs.
        layers: layers of the model.
        spare: more inputs, for layers that none of the others reaches; read after these.

    Raises:
        PlanError: the model does not take the inputs, or no input reaches a layer; the
            message names all of these.

    """
    moments = {layer.name: Moments.of(layer) for layer in layers}
    _collect(model, inputs, layers, moments)
    missing = [layer for layer in layers if not moments[layer.name].seen]
    if missing and spare:
        _collect(model, spare, missing, moments)
    check_reached([name for name, one in moments.items() if not one.seen])
    return moments


def _collect(
    model: nn.Module,
    inputs: Iterable[Inputs],
    layers: Iterable[Layer],
    moments: Mapping[str, Moments],
) -> None:
    """Add what the inputs bring to some of the layers to their moments."""
    by_module = calling_modules(model, layers)

    @torch.no_grad()  # a forward pass may have gradients on
    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for layer in by_module[module]:
            for problem, columns in layer_inputs(layer, module, args, kwargs):
                moments[layer.name].add(problem, columns)

    with hooked(module.register_forward_pre_hook(see, with_kwargs=True) for module in by_module):
        feed(model, inputs)


def freeze_from_float(
    model: nn.Module,
    layers: Sequence[Layer],
    inputs: Iterable[Inputs],
    freeze: Freeze[Outcome],
    spare: Collection[Inputs] = (),
) -> dict[str, Outcome]:
    """Freeze each layer from full-precision inputs, and return the outcomes by layer name.

    All moments are collected before the first layer freezes, since freezing changes the model.
    See :func:`float_moments` for the arguments.
    """
    moments = float_moments(model, inputs, layers, spare)
    return {layer.name: freeze(layer, moments[layer.name], None) for layer in layers}
