"""The state that modules keep beside their parameters: attributes and buffers, which a forward pass
may write.
"""

import contextlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.copies import copied
from octavo.network.nested import children

__all__ = ["ATOMS", "ModuleState", "Slot", "Values", "isolated", "same"]

Slot: TypeAlias = tuple[str, str]  # the name of a module, and of an attribute or buffer of it
Values: TypeAlias = Mapping[Slot, Any]

# The attributes that every module has: its parameters, submodules, hooks and mode.
MACHINERY = frozenset(vars(nn.Module()))
ATOMS = (bool, int, float, complex, str, bytes, type(None), type)


class ModuleState:
    """The attributes and buffers of a model, or some of them.

    Args:
        model: the model.
        slots: those that count; None: all. They may come from another copy of the model.

    """

    def __init__(self, model: nn.Module, slots: Collection[Slot] | None = None) -> None:
        scripted = torch.jit.ScriptModule  # its attributes are out of reach
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if not isinstance(module, scripted)
        }
        self._slots = slots
        self._shared: dict[int, Any] = {id(module): module for module in model.modules()}
        self._shared |= {id(parameter): parameter for parameter in model.parameters()}

    def read(self) -> dict[Slot, Any]:
        """Return the values of now, as they are."""
        if self._slots is not None:
            spaces = ((slot, self._space(slot)) for slot in self._slots)
            return {slot: space[slot[1]] for slot, space in spaces if slot[1] in space}
        return {
            (name, key): value
            for name, space in self.spaces()
            for key, value in space.items()
            if key not in MACHINERY
        }

    def spaces(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the dictionaries that have the values, and more, with the name of their module."""
        for name, module in self._modules.items():
            yield name, vars(module)
            yield name, module._buffers

    def put(self, values: Values) -> None:
        """Put values back that :meth:`read` returned, and take away what came since."""
        for slot in self.read():
            if slot not in values:
                del self._space(slot)[slot[1]]
        for slot, value in values.items():
            self._space(slot)[slot[1]] = value

    def copied(self, values: Values) -> dict[Slot, Any]:
        """Return a copy of values that shares nothing but modules and parameters with them, and
        what cannot be copied.
        """
        memo = dict(self._shared)
        return {slot: _copied_if_possible(value, memo) for slot, value in values.items()}

    def _space(self, slot: Slot) -> dict[str, Any]:
        """Return the dictionary that has a slot, or shall have it."""
        module = self._modules[slot[0]]
        space: dict[str, Any] = module._buffers if slot[1] in module._buffers else vars(module)
        return space


@contextlib.contextmanager
def isolated(model: nn.Module, slots: Collection[Slot] | None = None) -> Iterator[None]:
    """Put the attributes and buffers of a model back after a while: see :class:`ModuleState`.

    In the meantime the model has copies of them, so that it may also write into them.
    """
    state = ModuleState(model, slots)
    before = state.read()
    state.put(state.copied(before))
    try:
        yield
    finally:
        state.put(before)


def same(value: Any, other: Any, seen: set[int] | None = None) -> bool:
    """Tell if two values are equal, tensors number by number; objects of unknown kinds are compared
    by their attributes, or count as equal if they have none.

    Args:
        value: one of them.
        other: the other one.
        seen: the ids of objects that are compared already; for calls from here.

    """
    seen = set() if seen is None else seen
    if value is other or id(value) in seen:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, ATOMS):
        return bool(value == other)
    if isinstance(value, Tensor):
        return _same_tensors(value, other)
    if isinstance(value, torch.Generator):
        return torch.equal(value.get_state(), other.get_state())
    seen.add(id(value))
    items = children(value)
    other_items = children(other)
    if items is None or other_items is None:
        return _same_objects(value, other, seen)
    return len(items) == len(other_items) and all(
        key == other_key and same(item, other_item, seen)
        for (key, item), (other_key, other_item) in zip(items, other_items, strict=True)
    )


def _same_objects(value: Any, other: Any, seen: set[int]) -> bool:
    if hasattr(value, "__dict__"):
        return same(vars(value), vars(other), seen)
    if isinstance(value, np.ndarray):
        return np.array_equal(value, other)
    if isinstance(value, deque):
        return same(list(value), list(other), seen)
    equality: Any = type(value).__eq__
    by_identity = equality == object.__eq__
    return by_identity or bool(value == other)


def _same_tensors(tensor: Tensor, other: Tensor) -> bool:
    alike = (tensor.shape, tensor.dtype, tensor.device, tensor.layout) == (
        other.shape, other.dtype, other.device, other.layout,
    )  # fmt: skip
    if not alike or tensor.is_meta or tensor.layout is not torch.strided:
        return alike
    if torch.equal(tensor, other):
        return True
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return numbers and torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True)


def _copied_if_possible(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return value if isinstance(value, ATOMS) else copied(value, memo)
    except PlanError:
        return value
