"""What of a network is pruned already."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from octavo.errors import PlanError, nearest
from octavo.formats.width import WidthLike
from octavo.network.layers import Layer, find_layers
from octavo.plan import planned_layers
from octavo.pruning.surgery import _found

__all__ = ["clear", "fold_masks", "kept_masks", "pruned_masks"]


def pruned_masks(layers: Iterable[Layer], masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """What is pruned of each layer: bool, true where it is; layers of which nothing is are left
    out.

    Args:
        layers: the layers that are planned.
        masks: layer name to mask, false where pruned; None finds them: see
            ``octavo.inq.partition.pruned``. The padding of an embedding, zero anyhow, is none of
            them.

    Raises:
        PlanError: a mask of no layer, or of another shape than its weight.

    """
    layers = list(layers)
    known = {layer.name: layer.weight for layer in layers}
    if masks is None:
        found = {layer.name: _found(layer) for layer in layers}
    else:
        for name, mask in masks.items():
            if name not in known:
                raise PlanError(f"masks: {name} is no layer that is planned{nearest(name, known)}")
            if not isinstance(mask, Tensor) or mask.shape != known[name].shape:
                got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise PlanError(
                    f"masks: {name}: expected a tensor of the shape {tuple(known[name].shape)}, got {got}"
                )
        found = {name: mask.to(known[name].device) == 0 for name, mask in masks.items()}
    return {name: mask for name, mask in found.items() if bool(mask.any())}


def kept_masks(model: nn.Module, plan: Mapping[str, WidthLike]) -> dict[str, Tensor]:
    """Masks for ``Incremental`` of what is pruned now: taken before the closed form, which makes
    zeros of its own.
    """
    layers = [layer for layer, _ in planned_layers(model, plan)]
    return {name: ~mask for name, mask in pruned_masks(layers, None).items()}


@torch.no_grad()
def clear(layers: Iterable[Layer], pruned: Mapping[str, Tensor]) -> None:
    """Set what is pruned, by layer name, to zero."""
    for layer in layers:
        if layer.name in pruned:
            layer.weight.masked_fill_(pruned[layer.name], 0)


def fold_masks(model: nn.Module) -> dict[str, Tensor]:
    """Make a network that ``torch.nn.utils.prune`` masks plain, in place: its pruned weights become
    zeros.

    Returns:
        Layer name to mask: bool, the weight's shape, false where pruned. Empty if nothing was
        masked.

    """
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                found[module, hook._tensor_name] = getattr(module, f"{hook._tensor_name}_mask") != 0
    for module, attribute in found:
        prune.remove(module, attribute)
    layers = find_layers(model)[0]
    return {
        layer.name: found[place] for layer in layers for place in layer.places if place in found
    }
