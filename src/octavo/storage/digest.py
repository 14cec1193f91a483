"""What tells weights or inputs from all others in a few characters."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from octavo.storage.manifest import raw_bytes

__all__ = ["digest"]


def digest(value: Any) -> str:
    """12 hexadecimal digits of what nested tuples, lists and mappings hold; the order of keys does
    not count.
    """
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece)
    return found.hexdigest()[:12]


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield raw_bytes(value)
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield str(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _pieces(item)
    else:
        yield repr(value).encode()
