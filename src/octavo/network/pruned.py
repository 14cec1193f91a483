"""The weights of layers that are pruned: find them, and set them to zero.

There are two kinds of masks. A mask that users see, as ``calibrate(masks=...)`` takes it, is false
where a weight is pruned, as in ``torch.nn.utils.prune``. A tensor named ``pruned`` is true there.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from octavo.errors import PlanError, nearest
from octavo.formats.zeros import pruned_mask
from octavo.network.layers import Layer

__all__ = ["find_pruned", "set_to_zero", "zeroed"]


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


@torch.no_grad()
def set_to_zero(layers: Iterable[Layer], pruned: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of each layer to zero; ``pruned`` is by layer name, true where a
    weight is pruned.
    """
    for layer in layers:
        if layer.name in pruned:
            layer.weight.masked_fill_(pruned[layer.name], 0)


@contextlib.contextmanager
def zeroed(layers: Iterable[Layer], pruned: Mapping[str, Tensor]) -> Iterator[None]:
    """Do what :func:`set_to_zero` does, and undo it if an error ends the ``with`` block."""
    some = [layer for layer in layers if layer.name in pruned]
    values = [layer.weight.detach()[pruned[layer.name]] for layer in some]  # copies
    set_to_zero(some, pruned)
    try:
        yield
    except BaseException:
        for layer, value in zip(some, values, strict=True):
            layer.weight.detach()[pruned[layer.name]] = value
        raise


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
