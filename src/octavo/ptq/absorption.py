"""Batch norms that absorb a scale of the channels ahead of them.

A grid of powers of two is the same at every octave, so a channel has no scale to choose but its
phase within one; weights that are few, as a depthwise convolution's nine, lie on the grid much
better at some phases than at others. Where a batch norm follows directly, the phase is free: it
takes any scale away again, if its running statistics follow. In full precision nothing changes,
neither in evaluation nor in training. (Ours; equalization across layers, arXiv 1906.04721, moves
scales likewise.)
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.calling import Inputs, call, hooked
from octavo.network.kinds import NORMS, ONE_WEIGHT
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.network.nested import named_tensors

__all__ = ["absorb_factor", "absorbing_norms", "rescaled"]

ALIKE = 1e-3  # share of an output's largest value that rounding may change


def absorbing_norms(
    model: nn.Module, layers: Sequence[Layer], batch: Inputs
) -> dict[str, nn.Module]:
    """The batch norms that absorb a scale of the layers ahead of them, by the layers' names.

    Found by what is handed from module to module in one call, and tried: the channels are doubled,
    and the model's outputs must stay as they are. So a layer whose output goes elsewhere too is
    left out.

    Args:
        model: in evaluation mode.
        layers: of it.
        batch: inputs that the model is called with.

    """
    batch = batch[:2] if isinstance(batch, Tensor) else batch
    norms = _following(model, layers, batch)
    known = {layer.name: layer for layer in layers}
    pairs = {name: norm for name, norm in norms.items() if _fits(known[name], norm)}
    stays = functools.partial(_outputs_stay, model, batch)
    if not pairs or stays([(known[name], norm) for name, norm in pairs.items()]):
        return pairs
    return {name: norm for name, norm in pairs.items() if stays([(known[name], norm)])}


@torch.no_grad()
def absorb_factor(layer: Layer, norm: Any, factor: Tensor) -> None:
    """Make up for a layer's output channels that were divided by ``factor``, (channels,): its bias
    and the norm follow.
    """
    if isinstance(bias := layer.module.bias, Tensor):
        bias.div_(factor.to(bias))
    if norm.running_mean is not None:
        norm.running_mean.div_(factor.to(norm.running_mean))
        norm.running_var.copy_(
            (norm.running_var.double() + norm.eps) / factor.to(norm.running_var.device).square()
            - norm.eps
        )


def rescaled(layer: Layer, weight: Tensor, factor: Tensor | None) -> Tensor:
    """A weight, in the layer's own layout, with its output channels multiplied by ``factor``; None
    leaves it as it is.
    """
    if factor is None:
        return weight
    rows = channels_first(weight, layer.groups)
    return channels_back(rows * factor.to(rows).view(-1, *[1] * (rows.dim() - 1)), layer.groups)


def _following(model: nn.Module, layers: Sequence[Layer], batch: Inputs) -> dict[str, nn.Module]:
    """The norm that the output of each layer is handed to, where there is one; norms that are
    called once.
    """
    named: dict[nn.Module, str] = {
        layer.module: layer.name for layer in layers if layer.form in ONE_WEIGHT and not layer.tied
    }
    given, calls = dict[int, tuple[str, Tensor]](), list[tuple[nn.Module, str | None]]()

    def leave(module: nn.Module, _: Any, output: Tensor) -> None:
        given[id(output)] = named[module], output  # held, so that no other tensor gets its id

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append((module, given.get(id(args[0]), (None,))[0] if args else None))

    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    hooks = [module.register_forward_hook(leave) for module in named]
    with hooked(hooks + [norm.register_forward_pre_hook(enter) for norm in norms]), torch.no_grad():
        call(model, batch)
    modules = [module for module, _ in calls]
    return {name: norm for norm, name in calls if name is not None and modules.count(norm) == 1}


def _fits(layer: Layer, norm: Any) -> bool:
    rows = len(channels_first(layer.weight, layer.groups))
    return layer.form != "embedding" and norm.num_features == rows and not norm.training


def _outputs_stay(
    model: nn.Module, batch: Inputs, pairs: Sequence[tuple[Layer, nn.Module]]
) -> bool:
    """Whether a copy of the model returns what the model returns, once the channels of these layers
    are doubled.
    """
    twins = dict[int, Any]()
    doubled = copy.deepcopy(model, twins)
    for layer, norm in pairs:
        own = Layer(
            layer.name,
            twins[id(layer.module)],
            layer.attribute,
            layer.parameter,
            twins[id(layer.weight)],
        )
        own.weight.data.mul_(2)
        absorb_factor(
            own, twins[id(norm)], torch.full((norm.num_features,), 0.5, dtype=torch.float64)
        )  # type: ignore[arg-type]
    with torch.no_grad():
        before, after = (dict(named_tensors(call(some, batch))) for some in (model, doubled))
    return before.keys() == after.keys() and all(
        _close(before[name], after[name]) for name in before
    )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    return torch.allclose(
        one.double(), other.double(), rtol=0, atol=ALIKE * float(one.abs().max()), equal_nan=True
    )
