"""The masks of a network that is pruned already: ``octavo.network.pruned`` says what a mask is."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import prune

from octavo.formats.width import WidthLike
from octavo.network.layers import find_layers
from octavo.network.pruned import find_pruned
from octavo.plan import planned_layers

__all__ = ["find_kept", "fold_masks"]


def find_kept(model: nn.Module, plan: Mapping[str, WidthLike]) -> dict[str, Tensor]:
    """Find the weights that are not pruned: masks for ``Incremental``, false where a weight is.

    They must be taken before PTQ, which makes zeros of its own.
    """
    layers = [layer for layer, _ in planned_layers(model, plan)]
    return {name: ~pruned for name, pruned in find_pruned(layers, None).items()}


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
