"""The one rule of tied tensors: they are at the same place in memory, with the same strides.

Two parameters may be one object under two names, or two objects over one piece of memory, as
``one.data = other.data`` makes them. Both are one tensor to octavo.
"""

from collections.abc import Hashable, Iterable

from torch import Tensor, nn

__all__ = ["memory_of", "overlapping", "sharing"]


def memory_of(tensor: Tensor) -> Hashable:
    """Return a key that tensors have in common if and only if they are tied; a tensor without
    memory of its own, because it is empty or on the meta device, is tied to itself only.
    """
    if isinstance(tensor, nn.UninitializedParameter) or not tensor.numel() or tensor.is_meta:
        return id(tensor)
    try:
        address = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor that only wraps others
        return id(tensor)
    return address, tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def sharing(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the groups of tied tensors that are several objects."""
    groups: dict[Hashable, dict[int, Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(memory_of(tensor), {})[id(tensor)] = tensor
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def overlapping(tensors: Iterable[Tensor]) -> set[int]:
    """Return the positions of tensors that share memory with another that is not tied to them, such
    as its transpose.
    """
    spans = []
    for position, tensor in enumerate(tensors):
        key = memory_of(tensor)
        if isinstance(key, tuple) and _is_dense(tensor):
            start = tensor.data_ptr()
            end = start + tensor.numel() * tensor.element_size()
            spans.append((str(tensor.device), start, end, position, key))
    found = set()
    spans.sort(key=lambda span: span[:4])
    for index, (device, _, end, position, key) in enumerate(spans):
        for other_device, other_start, _, other_position, other_key in spans[index + 1 :]:
            if other_device != device or other_start >= end:
                break
            if other_key != key:
                found |= {position, other_position}
    return found


def _is_dense(tensor: Tensor) -> bool:
    """Tell if a tensor's numbers fill one piece of memory, in whatever order."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in steps)
    return extent == tensor.numel()
