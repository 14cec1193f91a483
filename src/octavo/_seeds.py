"""A seed for each thing that is drawn."""

import zlib

__all__ = ["seed_of"]


def seed_of(*numbers: int) -> int:
    """A seed from a run's own and the numbers of what is drawn, in 32 bits: all that torch's CPU
    generator takes of one.
    """
    return zlib.crc32(" ".join(map(str, numbers)).encode())
