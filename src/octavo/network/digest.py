"""A digest: a few characters that tell values, such as weights and inputs, from all others."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["bytes_of", "digest", "weights_digest"]

DIGITS = 16  # hexadecimal: of 2^64 other values, one has the same
DIGITS_OF_WEIGHTS = 12


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a nested value: of tensors, numpy arrays and
    plain values, their shapes and types, and the tuples, lists and mappings that hold them.

    It is the same once JSON was written and read, which turns tuples into lists and keys into
    texts, in any order. Other objects count by their ``repr``.
    """
    return _hashed(_pieces(value))[:DIGITS]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a state dict: of its names in order, each with
    its values. Published results have it, so it stays as it was in the first version.

    It tells networks of one architecture apart: shapes and types do not count.
    """
    named = ((name.encode(), bytes_of(state[name]).data) for name in sorted(state))
    return _hashed(piece for pair in named for piece in pair)[:DIGITS_OF_WEIGHTS]


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return a tensor's values as little-endian bytes, in its own memory where it is dense."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    values: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return values


def _hashed(pieces: Iterable[bytes | memoryview]) -> str:
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yield bytes that tell a value from all others, as :func:`digest` compares them. Files have
    checksums of them, so they stay as they are.
    """
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} ".encode()
        yield bytes_of(value).data
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype.str} {value.shape} ".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield b"{"
        for key in sorted(value, key=str):
            yield json.dumps(str(key)).encode()
            yield from _pieces(value[key])
        yield b"}"
    elif isinstance(value, list | tuple):
        yield b"["
        for item in value:
            yield from _pieces(item)
        yield b"]"
    else:
        yield json.dumps(value, default=repr).encode() + b","
