"""A digest: a few characters that tell weights or inputs from all others."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from octavo.network.nested import children
from octavo.storage.manifest import raw_bytes

__all__ = ["digest"]


def digest(value: Any) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of everything in nested tuples, lists and
    mappings; the order of keys does not count.
    """
    hashed = hashlib.sha256()
    for piece in _pieces(value):
        hashed.update(piece)
    return hashed.hexdigest()[:12]


def _pieces(value: Any) -> Iterator[bytes]:
    items = children(value)
    if isinstance(value, Tensor):
        yield raw_bytes(value)
    elif items is None:
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield str(key).encode()
            yield from _pieces(value[key])
    else:
        for _, item in items:
            yield from _pieces(item)
