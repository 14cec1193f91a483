"""Scales of channels that the following batch norm cancels.

Powers of two repeat at every octave, so the only scale that a channel can choose is one within an
octave. Channels of few weights, as the nine of a depthwise convolution, lie much nearer to the
levels at some of these scales than at others. If a batch norm follows directly, the scale is free:
the batch norm cancels it, as long as its running statistics follow. In full precision nothing
changes, neither in evaluation nor in training. (The method is octavo's own; equalization across
layers, arXiv 1906.04721, moves scales in a similar way.)
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.calls import call_alone, few_rows, undisturbed
from octavo.network.conduct import close
from octavo.network.copies import copied
from octavo.network.forward import Inputs, hooked
from octavo.network.kinds import NORMS, ONE_WEIGHT
from octavo.network.layers import Layer, channels_back, channels_first

__all__ = ["absorb_factor", "absorbing_norms", "rescaled"]

TOLERANCE = 1e-3  # change of an output by rounding, as a share of the largest output

Pair = tuple[Layer, Any]  # a layer, and the batch norm that follows it


def absorbing_norms(
    model: nn.Module, layers: Sequence[Layer], batch: Inputs
) -> dict[str, nn.Module]:
    """Find the batch norms that cancel a scale of the layers ahead of them, by the layers' names.

    The candidates are the batch norms that one call of the model hands the output of a layer to.
    Each is tried: the layer's channels are doubled, and the model's outputs must stay as they are.
    So a layer whose output goes elsewhere too is left out.

    Args:
        model: the network, in evaluation mode.
        layers: layers of this network.
        batch: inputs that the model is called with.

    """
    batch = few_rows(model, batch, 2)
    by_name = {layer.name: layer for layer in layers}
    following = _following_norms(model, layers, batch)
    pairs = [
        (by_name[name], norm) for name, norm in following.items() if _fits(by_name[name], norm)
    ]
    if pairs and not _outputs_stay(model, batch, pairs):  # not all together: each by itself
        pairs = [pair for pair in pairs if _outputs_stay(model, batch, [pair])]
    return {layer.name: norm for layer, norm in pairs}


@torch.no_grad()
def absorb_factor(layer: Layer, norm: Any, factor: Tensor) -> None:
    """Adapt a layer's bias and the batch norm behind it to output channels whose weights were
    divided by ``factor``, (channels,).

    The running mean becomes ``mean / factor``; the running variance becomes ``variance'`` with
    ``variance' + eps = (variance + eps) / factor^2``.
    """
    bias = getattr(layer.module, "bias", None)
    if isinstance(bias, Tensor):
        bias.div_(factor.to(bias))
    if norm.running_mean is not None:
        norm.running_mean.div_(factor.to(norm.running_mean))
        square = factor.to(norm.running_var.device).square()
        norm.running_var.copy_((norm.running_var.double() + norm.eps) / square - norm.eps)


def rescaled(layer: Layer, weight: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply the output channels of a weight, in the layer's own layout, with ``factor``,
    (channels,); None leaves it as it is.
    """
    if factor is None:
        return weight
    rows = channels_first(weight, layer.groups)
    by_row = factor.to(rows).view(-1, *[1] * (rows.dim() - 1))
    return channels_back(rows * by_row, layer.groups)


def _following_norms(
    model: nn.Module, layers: Sequence[Layer], batch: Inputs
) -> dict[str, nn.Module]:
    """Return the batch norm that each layer's output is handed to, by the layer's name, among batch
    norms that are called once.
    """
    names: dict[nn.Module, str] = {
        layer.module: layer.name for layer in layers if layer.form in ONE_WEIGHT and not layer.tied
    }
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    # The layer that each tensor came from, by the tensor's id. The tensor is kept, so that no other
    # gets its id.
    sources: dict[int, tuple[str, Tensor]] = {}
    handed: list[tuple[str, nn.Module]] = []  # a layer's name, and the batch norm that took it
    calls: Counter[nn.Module] = Counter()

    def leave_layer(module: nn.Module, _: Any, output: Tensor) -> None:
        sources[id(output)] = names[module], output

    def enter_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] += 1
        if args and id(args[0]) in sources:
            name, _ = sources[id(args[0])]
            handed.append((name, module))

    hooks = [module.register_forward_hook(leave_layer) for module in names]
    hooks += [norm.register_forward_pre_hook(enter_norm) for norm in norms]
    with hooked(hooks), torch.no_grad(), undisturbed(model):
        call_alone(model, batch)
    return {name: norm for name, norm in handed if calls[norm] == 1}


def _fits(layer: Layer, norm: Any) -> bool:
    """Tell if a batch norm has a channel for each output channel of a layer, and its statistics are
    fixed.
    """
    channels = len(channels_first(layer.weight, layer.groups))
    return layer.form != "embedding" and norm.num_features == channels and not norm.training


def _outputs_stay(model: nn.Module, batch: Inputs, pairs: Sequence[Pair]) -> bool:
    """Tell if the model's outputs stay as they are when, in a copy, the channels of these layers
    are doubled and the batch norms follow.
    """
    copies = dict[int, Any]()  # the copy of each object, by its id
    doubled = copied(model, copies)
    for layer, norm in pairs:
        twin = dataclasses.replace(
            layer, module=copies[id(layer.module)], weight=copies[id(layer.weight)]
        )
        twin.weight.data.mul_(2)
        half = torch.full((norm.num_features,), 0.5, dtype=torch.float64, device="cpu")
        absorb_factor(twin, copies[id(norm)], half)
    with torch.no_grad(), undisturbed(model):
        return close(call_alone(model, batch), call_alone(doubled, batch), TOLERANCE)
