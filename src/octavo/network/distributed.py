"""Models in ``torch.nn.parallel.DistributedDataParallel`` (DDP), which notes the parameters of a
model when it is made, and knows nothing of what comes later.
"""

import gc
from collections.abc import Iterator

import torch
from torch import nn

from octavo.errors import PlanError

__all__ = ["check_not_distributed"]


def check_not_distributed(model: nn.Module, change: str) -> None:
    """Raise PlanError if DDP already wraps a model, or any part of it, that octavo is about to
    change. Gradients would be averaged wrongly or not at all, and the ranks drift apart.

    Args:
        model: the model.
        change: the call that changes it, such as ``Incremental(model, ...)``.

    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if _is_wrapped(model):
        gc.collect()  # a wrapper that nobody uses any more does no harm
        if _is_wrapped(model):
            raise PlanError(
                f"{type(model).__name__}: expected a model that DistributedDataParallel does not "
                f"wrap yet, got one that it does; call {change} first, on the same plain model on "
                "every rank, and wrap the model afterwards"
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
