"""Start a run on the ranks that ``torchrun`` has started."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import distributed

from octavo.network.devices import device_named
from octavo.network.ranks import Ranks

__all__ = ["launched"]

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
PATIENCE = timedelta(days=30)  # ranks wait while rank 0 calibrates or searches


@contextlib.contextmanager
def launched(device: str) -> Iterator[Ranks]:
    """Join the other ranks for a while; a process that was started in another way is alone.

    Args:
        device: the name of the device, as :func:`~octavo.network.devices.device_named` takes it.
            GPUs talk by NCCL, and processes by Gloo.

    """
    started = all(name in os.environ for name in LAUNCHED)
    if not started or os.environ["WORLD_SIZE"] == "1" or distributed.is_initialized():
        yield Ranks.of_process()
        return
    backend = "gloo"
    chosen = device_named(device)
    if chosen is not None and chosen.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(chosen)
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks.of_process()
    finally:
        distributed.destroy_process_group()
