"""Parametrizations of octavo's own on the parameters of one module: they are put on, and taken off
again without a trace.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

__all__ = ["attach_to", "is_attached", "restore_module"]

NAME = "_before_attach"  # the attribute of a module that has its ``_Before``


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


def attach_to(module: nn.Module, attribute: str, parametrization: nn.Module) -> None:
    """Put a parametrization on a parameter, until :func:`restore_module`."""
    if not hasattr(module, NAME):
        _remember(module)
    # Unsafe is what torch calls it not to compute the weight once to compare shape and type.
    parametrize.register_parametrization(module, attribute, parametrization, unsafe=True)
    before: _Before = getattr(module, NAME)
    before.attached.append(attribute)


def is_attached(module: nn.Module, attribute: str) -> bool:
    """Tell if a parameter of the module has a parametrization of octavo's own."""
    before: _Before | None = getattr(module, NAME, None)
    return before is not None and attribute in before.attached


def restore_module(module: nn.Module) -> None:
    """Undo :func:`attach_to` on all parameters of a module.

    torch's own removal would also take the attributes off the class, which copies of the module
    share.
    """
    before: _Before = getattr(module, NAME)
    object.__delattr__(module, NAME)
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


def _remember(module: nn.Module) -> None:
    """Note how the module is now, for :func:`restore_module`."""
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
    object.__setattr__(module, NAME, _Before(kind, list(module._parameters), hooks))


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
