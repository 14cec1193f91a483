"""Ranks that train one network by INQ agree on its settings, its first weights and what freezes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from octavo.errors import PlanError
from octavo.inq.planned_layer import PlannedLayer, tensors_of
from octavo.network.digest import digest
from octavo.network.distributed import do_not_broadcast, is_sharded
from octavo.network.parametrizations import original
from octavo.network.ranks import Ranks

__all__ = ["agreed", "check_alike", "keep_from_broadcasts", "refit_on_one", "start_alike"]


def start_alike(ranks: Ranks, model: nn.Module) -> None:
    """Let all ranks start from the parameters and buffers of rank 0.

    Raises:
        TrainingError: a rank has a model of other shapes.

    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors)
    ranks.check_equal({"the shapes of its model": shapes}, "Incremental")
    ranks.share(tensor for _, tensor in tensors)


def agreed(ranks: Ranks, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings; raise TrainingError unless all ranks have the same."""
    ranks.check_equal({name: repr(value) for name, value in settings.items()}, "Incremental")
    return settings


def check_alike(ranks: Ranks, layers: Sequence[PlannedLayer], doing: str) -> None:
    """Raise TrainingError unless every rank froze the same weights at the same levels, and has the
    same free weights. ``doing`` is what they did, for the message.
    """
    if ranks.count > 1:
        prints = {layer.name: digest(tensors_of(layer)) for layer in layers}
        ranks.check_equal(prints, doing)


def keep_from_broadcasts(ranks: Ranks, model: nn.Module, layers: Sequence[PlannedLayer]) -> None:
    """Let DDP not send in every forward pass what all ranks have alike: five bytes a weight."""
    if ranks.count > 1:
        do_not_broadcast(model, [layer.parametrization for layer in layers])


def refit_on_one(
    ranks: Ranks, layers: Sequence[PlannedLayer], refit: Callable[[], set[str]]
) -> set[str]:
    """Let rank 0 freeze and refit layers, and give all ranks its weights and its result.

    Raises:
        PlanError: a rank has a part of the weights only.

    """
    if any(is_sharded(original(one.layer)) for one in layers):
        raise PlanError(
            "inputs: expected every rank to have all of the weights that are refitted, got a model "
            "that fully_shard wraps; leave inputs out, or wrap it with DistributedDataParallel"
        )
    refitted = ranks.once(refit)
    ranks.share(tensor for one in layers for tensor in tensors_of(one))
    return refitted
