"""Nested values, such as arguments and outputs of models: tensors inside tuples, lists, mappings
and dataclasses.

``torch.utils._pytree`` does the same for the containers that it has been told of. Here any mapping
is a container, such as the ``BatchEncoding`` of transformers, and nothing needs to be registered.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["children", "leaves", "mapped", "named_tensors"]


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the keys and items of a mapping, or the positions and items of a tuple or list, where
    a named tuple has fields instead of positions; None if ``value`` is no such container.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple | list):
        positions = getattr(value, "_fields", range(len(value)))
        return list(zip(positions, value, strict=True))
    return None


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return ``value`` with every leaf replaced by ``change(leaf)``.

    A packed sequence is one leaf. A mapping becomes a dict, and a named tuple keeps its type.
    """
    items = None if isinstance(value, PackedSequence) else children(value)
    if items is None:
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in items}
    changed = [mapped(item, change) for _, item in items]
    if hasattr(value, "_fields"):  # a named tuple takes its items one by one
        return type(value)(*changed)
    return changed if isinstance(value, list) else tuple(changed)


def leaves(value: Any) -> Iterator[Any]:
    """Yield everything that :func:`mapped` would change, in order."""
    items = None if isinstance(value, PackedSequence) else children(value)
    if items is None:
        yield value
    for _, item in items or ():
        yield from leaves(item)


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside ``value`` with their paths: ``boxes``, ``state.0``.

    Dataclasses are searched too, and a packed sequence gives its tensors one by one.
    """
    if isinstance(value, Tensor):
        yield name, value
        return
    items = children(value)
    if items is None and dataclasses.is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    for key, item in items or ():
        yield from named_tensors(item, f"{name}.{key}".lstrip("."))
