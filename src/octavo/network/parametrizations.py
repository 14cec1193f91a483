"""Put parametrizations on the weights of layers, and take them off again without a trace."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from octavo.network.distributed import assign, whole
from octavo.network.layers import Layer

__all__ = ["attach", "original", "release", "set_trained_weight", "trained_weight"]


def attach(layer: Layer, parametrization: nn.Module) -> None:
    """Put a parametrization on a layer's parameter, in every module that shares it, until
    :func:`release`.
    """
    for module, attribute in layer.places:
        if not hasattr(module, "_before_attach"):
            _remember(module)
        # Unsafe is what torch calls it not to compute the weight once to compare shape and type.
        parametrize.register_parametrization(module, attribute, parametrization, unsafe=True)
        before: Any = module._before_attach
        before.attached.append(attribute)


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
        _restore(module)


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


@dataclass
class _Before:
    """A module as it was before the first parametrization was attached.

    Attributes:
        kind: its class.
        order: the names of its parameters, in order.
        hooks: hooks that keep a recurrent module's own list of weights up to date.
        attached: the parameters that have a parametrization by now.

    """

    kind: type[nn.Module]
    order: list[str]
    hooks: list[RemovableHandle]
    attached: list[str] = field(default_factory=list)


def _remember(module: nn.Module) -> None:
    """Note how the module is now, for :func:`_restore`."""
    hooks = []
    if isinstance(module, nn.RNNBase):
        hooks = [
            module.register_forward_pre_hook(_show_weights),
            module.register_forward_hook(_hide_weights),
        ]
    kind = type(module)
    if parametrize.is_parametrized(module):
        # It has a class of its own for its parametrizations, to which torch would add ours.
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    object.__setattr__(module, "_before_attach", _Before(kind, list(module._parameters), hooks))


def _restore(module: nn.Module) -> None:
    """Undo ``attach`` on all of a module's parameters.

    torch's own removal would also take the attributes off the class, which copies of the module
    share.
    """
    before: Any = module._before_attach
    object.__delattr__(module, "_before_attach")
    lists: Any = module.parametrizations
    originals = {attribute: lists[attribute].original for attribute in before.attached}
    for attribute in originals:
        del lists[attribute]
    if not lists:
        del module.parametrizations
    module.__class__ = before.kind
    module._parameters.update(originals)
    for name in before.order:
        module._parameters[name] = module._parameters.pop(name)
    for hook in before.hooks:
        hook.remove()
    if isinstance(module, nn.RNNBase):
        _show_weights(module)


def _show_weights(module: nn.RNNBase, *_: object) -> None:
    """Fill the list of weights, which a recurrent module makes when it is built and reads in its
    forward pass, with the weights of now.
    """
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _hide_weights(module: nn.RNNBase, *_: object) -> None:
    """Empty that list after the forward pass, because ``copy.deepcopy`` does not take tensors that
    belong to a graph.
    """
    module._flat_weights = [None for _ in module._flat_weights_names]
