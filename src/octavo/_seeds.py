"""Seeds for random numbers, one for each thing that is drawn."""

import zlib

__all__ = ["seed_of"]


def seed_of(*numbers: int) -> int:
    """Return a seed for one thing that is drawn.

    Args:
        numbers: the seed of the run, and the numbers that identify what is drawn.

    Returns:
        32 bits, because torch's CPU generator takes no more of a seed.

    """
    return zlib.crc32(" ".join(map(str, numbers)).encode())
