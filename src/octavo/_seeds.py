"""Seeds for random numbers, one for each thing that is drawn."""

import contextlib
import zlib
from collections.abc import Iterator

import torch

__all__ = ["seed_of", "seeded"]


def seed_of(*numbers: int) -> int:
    """Return a seed for one thing that is drawn.

    Args:
        numbers: the seed of the run, and the numbers that identify what is drawn.

    Returns:
        32 bits, because torch's CPU generator takes no more of a seed.

    """
    return zlib.crc32(" ".join(map(str, numbers)).encode())


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for a while; afterwards it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        yield
