"""Models that torch wraps for several ranks.

``DistributedDataParallel`` (DDP) notes the parameters of a model when it is made, and knows nothing
of what comes later. ``fully_shard`` (FSDP2) replaces them by parts, one on each rank.
"""

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import PlanError

__all__ = ["assign", "check_not_distributed", "do_not_broadcast", "is_sharded", "whole"]


def check_not_distributed(model: nn.Module, change: str) -> None:
    """Raise PlanError if DDP or ``fully_shard`` already wraps a model, or any part of it, that
    octavo is about to change. Gradients would be averaged wrongly or not at all, and the ranks
    drift apart.

    Args:
        model: the model.
        change: the call that changes it, such as ``Incremental(model, ...)``.

    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    wrapper = "fully_shard" if any(map(is_sharded, model.parameters())) else None
    if _is_wrapped(model):
        gc.collect()  # a wrapper that nobody uses any more does no harm
        wrapper = "DistributedDataParallel" if _is_wrapped(model) else wrapper
    if wrapper is not None:
        raise PlanError(
            f"{type(model).__name__}: expected a model that {wrapper} does not wrap yet, got one "
            f"that it does; call {change} first, on the same plain model on every rank, and wrap "
            "the model afterwards"
        )


def _is_wrapped(model: nn.Module) -> bool:
    own = {id(parameter) for parameter in model.parameters()}
    return any(
        id(parameter) in own for wrapper in _wrappers() for parameter in wrapper.parameters()
    )


def _wrappers() -> Iterator[nn.Module]:
    """Yield every DDP wrapper of the process: a model does not know its wrapper."""
    for one in gc.get_objects():
        if issubclass(type(one), nn.parallel.DistributedDataParallel):
            yield one


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this rank has only a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose class takes long to import


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its parts; if it is sharded, every rank calls this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Write a whole value into a parameter, or this rank's part of it where it is sharded."""
    if not is_sharded(parameter):
        parameter.copy_(value)
        return
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = parameter
    mesh = sharded.device_mesh
    everywhere = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    parameter.copy_(everywhere.redistribute(mesh, sharded.placements))


def do_not_broadcast(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Let DDP, if it wraps ``model`` itself, not send the buffers of these modules from rank 0 in
    every forward pass. They must be the same on all ranks.
    """
    chosen = set(modules)
    names = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules(remove_duplicate=False)
        if module in chosen
        for name, _ in module.named_buffers(recurse=False)
    }
    # The attribute is torch's (DistributedDataParallel reads it when it is made); there is no other
    # way to leave some buffers out and still send those of batch norms.
    kept = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    model._ddp_params_and_buffers_to_ignore = sorted(kept | names)  # type: ignore[assignment]
