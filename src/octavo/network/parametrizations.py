"""Put parametrizations on the weights of layers, and take them off again without a trace."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.attachment import attach_to, restore_module
from octavo.network.distributed import assign, whole
from octavo.network.layers import Layer

__all__ = ["attach", "original", "release", "set_trained_weight", "trained_weight"]


def attach(layer: Layer, parametrization: nn.Module) -> None:
    """Put a parametrization on a layer's parameter, in every module that shares it, until
    :func:`release`.
    """
    for module, attribute in layer.places:
        attach_to(module, attribute, parametrization)


def release(layers: Iterable[Layer]) -> None:
    """Take the parametrizations of layers off again: the parameters take the values that the
    network saw, and the modules are as they were before.
    """
    modules: dict[nn.Module, None] = {}
    with torch.no_grad():
        for layer in layers:
            set_trained_weight(layer, _seen(layer))  # all modules share it
            modules |= dict.fromkeys(module for module, _ in layer.places)
    for module in modules:
        restore_module(module)


def original(layer: Layer) -> nn.Parameter:
    """Return the parameter beneath a layer's parametrizations as it is now: ``fully_shard`` puts
    another one in its place.
    """
    module: Any = layer.module
    parameter: nn.Parameter = module.parametrizations[layer.attribute].original
    return parameter


def trained_weight(layer: Layer) -> Tensor:
    """Return the values of that parameter, all of them where it is sharded."""
    return whole(original(layer).detach())


def set_trained_weight(layer: Layer, value: Tensor) -> None:
    """Write values into that parameter; every rank writes its part where it is sharded."""
    assign(original(layer), value)


def _seen(layer: Layer) -> Tensor:
    """Return the weight as the network sees it, all of it where its parameter is sharded."""
    module: Any = layer.module
    weight = trained_weight(layer)
    for parametrization in module.parametrizations[layer.attribute]:
        weight = parametrization(weight)
    return weight
