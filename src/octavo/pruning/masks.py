"""The weights of a network that are pruned already: find them, name them by masks, keep them zero.

There are two kinds of masks. A mask that users see, as ``Incremental(masks=...)`` takes it, is
false where a weight is pruned, as in ``torch.nn.utils.prune``. A tensor named ``pruned`` is true
there.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from octavo.errors import PlanError, nearest
from octavo.formats.width import WidthLike
from octavo.formats.zeros import pruned_mask
from octavo.network.layers import Layer, find_layers
from octavo.plan import planned_layers

__all__ = ["find_kept", "find_pruned", "fold_masks", "set_to_zero"]


def find_pruned(layers: Iterable[Layer], masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Find the pruned weights of each layer: by layer name a bool tensor, true where a weight is
    pruned. Layers in which nothing is pruned are left out.

    Args:
        layers: the layers that are planned.
        masks: layer name to mask, false where a weight is pruned. None takes zeros for pruned
            weights where ``octavo.formats.zeros.pruned_mask`` does; the padding of an embedding,
            which is zero anyhow, does not count.

    Raises:
        PlanError: a mask of no layer, or of another shape than the layer's weight.

    """
    by_name = {layer.name: layer for layer in layers}
    if masks is None:
        pruned_of = {name: _zeros_that_are_pruned(layer) for name, layer in by_name.items()}
    else:
        _check_masks(masks, by_name)
        pruned_of = {
            name: mask.to(by_name[name].weight.device) == 0 for name, mask in masks.items()
        }
    return {name: pruned for name, pruned in pruned_of.items() if bool(pruned.any())}


def find_kept(model: nn.Module, plan: Mapping[str, WidthLike]) -> dict[str, Tensor]:
    """Find the weights that are not pruned: masks for ``Incremental``, false where a weight is.

    They must be taken before PTQ, which makes zeros of its own.
    """
    layers = [layer for layer, _ in planned_layers(model, plan)]
    return {name: ~pruned for name, pruned in find_pruned(layers, None).items()}


@torch.no_grad()
def set_to_zero(layers: Iterable[Layer], pruned: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of each layer to zero; ``pruned`` is by layer name, true where a
    weight is pruned.
    """
    for layer in layers:
        if layer.name in pruned:
            layer.weight.masked_fill_(pruned[layer.name], 0)


def fold_masks(model: nn.Module) -> dict[str, Tensor]:
    """Make a network that ``torch.nn.utils.prune`` masks plain, in place: its pruned weights become
    zeros.

    Returns:
        Layer name to mask: bool, the weight's shape, false where a weight is pruned. Empty if
        nothing was masked.

    """
    masks: dict[tuple[nn.Module, str], Tensor] = {}  # by module and the name of its parameter
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                attribute = hook._tensor_name
                masks[module, attribute] = getattr(module, f"{attribute}_mask") != 0
    for module, attribute in masks:
        prune.remove(module, attribute)
    layers = find_layers(model)[0]
    return {
        layer.name: masks[owner] for layer in layers for owner in layer.places if owner in masks
    }


def _check_masks(masks: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> None:
    """Raise PlanError unless each mask is a tensor of the shape of its layer's weight."""
    for name, mask in masks.items():
        if name not in layers:
            raise PlanError(f"masks: {name} is no layer that is planned{nearest(name, layers)}")
        shape = layers[name].weight.shape
        if not isinstance(mask, Tensor) or mask.shape != shape:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise PlanError(
                f"masks: {name}: expected a tensor of the shape {tuple(shape)}, got {got}"
            )


def _zeros_that_are_pruned(layer: Layer) -> Tensor:
    padding = getattr(layer.module, "padding_idx", None)
    if padding is None:
        return pruned_mask(layer.weight)
    others = torch.arange(len(layer.weight), device=layer.weight.device) != padding
    pruned = torch.zeros_like(layer.weight, dtype=torch.bool)
    pruned[others] = pruned_mask(layer.weight[others])
    return pruned
