"""Put parametrizations on a layer's weight, and fold the model back to plain modules."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from octavo.network.layers import Layer

__all__ = ["attach", "release"]


def attach(layer: Layer, parametrization: nn.Module) -> None:
    """Put a parametrization on a layer's parameter, at every place that shares it, until
    ``release``.
    """
    for module, attribute in layer.places:
        if not hasattr(module, "_before_hold"):
            _remember(module)
        parametrize.register_parametrization(module, attribute, parametrization)
        module._before_hold[-1].append(attribute)  # type: ignore[union-attr, index]


def release(layers: Iterable[Layer]) -> None:
    """Fold held layers back: the parameters take the values that the network saw, the modules are
    plain again.
    """
    places = [place for layer in layers for place in layer.places]
    with torch.no_grad():
        for module, attribute in places:
            module.parametrizations[attribute].original.copy_(getattr(module, attribute))  # type: ignore[union-attr, index]
    for module in dict.fromkeys(module for module, _ in places):
        _restore(module)


def _remember(module: nn.Module) -> None:
    """Keep the order of the module's parameters and its class, and a recurrent layer's own list of
    weights up to date.
    """
    hooks = []
    if isinstance(module, nn.RNNBase):
        hooks = [
            module.register_forward_pre_hook(_show_weights),
            module.register_forward_hook(_hide_weights),
        ]
    kind = type(module)
    if parametrize.is_parametrized(
        module
    ):  # it has a class made for its parametrizations, to which ours would be added
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    object.__setattr__(module, "_before_hold", (kind, list(module._parameters), hooks, list[str]()))


def _restore(module: nn.Module) -> None:
    """Undo ``attach`` on all of a module's parameters.

    torch's own removal also takes the attributes off the class, which copies of the module share.
    """
    kind, order, hooks, attached = module._before_hold  # type: ignore[misc]
    object.__delattr__(module, "_before_hold")
    lists: Any = module.parametrizations
    originals = {attribute: lists[attribute].original for attribute in attached}
    for attribute in originals:
        del lists[attribute]
    if not lists:
        del module.parametrizations
    module.__class__ = kind
    module._parameters.update(originals)
    for name in order:
        module._parameters[name] = module._parameters.pop(name)
    for hook in hooks:
        hook.remove()
    if isinstance(module, nn.RNNBase):
        _show_weights(module)


def _show_weights(module: nn.RNNBase, *_: object) -> None:
    """Recurrent layers read a list that they made when they were built: fill it with today's
    weights.
    """
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _hide_weights(module: nn.RNNBase, *_: object) -> None:
    """Empty that list after the forward pass: copy.deepcopy refuses tensors that belong to a
    graph.
    """
    module._flat_weights = [None for _ in module._flat_weights_names]
