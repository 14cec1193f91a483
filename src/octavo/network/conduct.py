"""The conduct of a model: what its forward pass does beside computing outputs from inputs.

A pure forward pass returns the same for the same inputs and changes nothing. Others keep state on
their modules, write into their inputs or draw random numbers. octavo calls all of them so that
nothing stays of a call, and each batch finds what it would find alone.
"""

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.calls import call_alone, undisturbed
from octavo.network.copies import fresh
from octavo.network.forward import Inputs, call, hooked
from octavo.network.module_state import ATOMS, ModuleState, Slot, same
from octavo.network.nested import leaves, named_tensors
from octavo.network.random_state import RandomState

__all__ = ["PURE", "Conduct", "close", "conduct_of"]

# Kernels may sum in another order each time; more than this share of the largest output is no
# rounding.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Conduct:
    """The conduct of a model in evaluation mode.

    Attributes:
        written: the attributes and buffers that a call may write.
        writes_inputs: True if a call changes its inputs.
        draws: True if a call draws random numbers from torch.
        carries: True if what a call returns depends on the batch before it.
        repeats: True if two calls with the same inputs and the same random state return the same.

    """

    written: frozenset[Slot] = frozenset()
    writes_inputs: bool = False
    draws: bool = False
    carries: bool = False
    repeats: bool = True

    @property
    def pure(self) -> bool:
        """True if calls need no protection from each other."""
        return not (self.written or self.writes_inputs or self.draws)


PURE = Conduct()


def conduct_of(model: nn.Module, batches: Sequence[Inputs]) -> Conduct:
    """Find out how a model behaves, from calls with a few of the batches; nothing stays of them.

    Args:
        model: the model, in evaluation mode.
        batches: inputs of its calls. The second is called too, because the first may write what is
            there already, and the smallest and the largest one of other shapes than the first,
            because they may take other paths.

    """
    first = batches[0]
    one = _observe(model, first)
    again = _observe(model, first)
    others = [_observe(model, batch) for batch in (*batches[1:2], *_extremes(batches))]
    seen = [one, again, *others]
    written = frozenset[Slot]().union(*(each.written for each in seen))
    repeats = close(one.outputs, again.outputs)
    second = batches[min(1, len(batches) - 1)]
    return Conduct(
        written=written,
        writes_inputs=any(each.writes_inputs for each in seen),
        draws=any(each.draws for each in seen),
        carries=bool(written) and repeats and _carries(model, first, second),
        repeats=repeats,
    )


def close(outputs: Any, others: Any, tolerance: float = TOLERANCE) -> bool:
    """Tell if outputs have the same tensors, but for rounding: for changes up to ``tolerance``, as
    a share of the largest finite number of each tensor.
    """
    tensors = dict(named_tensors(outputs))
    other_tensors = dict(named_tensors(others))
    return tensors.keys() == other_tensors.keys() and all(
        _close(tensor, other_tensors[name], tolerance) for name, tensor in tensors.items()
    )


@dataclass(frozen=True, eq=False)
class _Observed:
    """One call of a model: its outputs, and what it did beside."""

    outputs: Any
    written: frozenset[Slot]
    writes_inputs: bool
    draws: bool


def _observe(model: nn.Module, batch: Inputs) -> _Observed:
    random = RandomState(model)
    watch = _Watch(model)
    weighted = [module for module in model.modules() if any(module._parameters)]
    with undisturbed(model):
        watch.begin()
        inputs = fresh(batch)
        random.seed(0)
        start = random.read()
        with hooked(module.register_forward_pre_hook(watch.look) for module in weighted):
            outputs = call(model, inputs)
        watch.look()
        watch.compare_tensors()
        draws = not all(map(torch.equal, start, random.read()))
    writes_inputs = not same(list(leaves(inputs)), list(leaves(batch)))
    return _Observed(outputs, frozenset(watch.written), writes_inputs, draws)


class _Watch:
    """A watch on the attributes and buffers of a model, which notes those that a call writes.

    A call may write a value and take it back before it ends, as a stack of skip connections does.
    So the watch looks at every module that the call comes to.

    Attributes:
        written: the attributes and buffers that were written.

    """

    def __init__(self, model: nn.Module) -> None:
        self.written = set[Slot]()
        self._state = ModuleState(model)
        self._pristine = self._state.read()
        self._before: dict[Slot, Any] = {}
        self._containers: dict[int, list[Slot]] = {}
        self._spaces = [space for _, space in self._state.spaces()]
        self._last: list[Any] = []  # all that the spaces had at the last look

    def begin(self) -> None:
        """Begin with the copies of all values that are in place now."""
        self._before = self._state.read()
        for slot, value in self._before.items():
            if not isinstance(value, (*ATOMS, Tensor)) and value is not self._pristine[slot]:
                self._containers.setdefault(id(value), []).append(slot)

    def look(self, *_: object) -> None:
        """Note what has another value now, and which lists and objects have other contents."""
        if self._has_changed():
            now = self._state.read()
            both = self._before.keys() & now.keys()
            self.written |= self._before.keys() ^ now.keys()
            self.written |= {slot for slot in both if self._before[slot] is not now[slot]}
        for slots in self._containers.values():
            if not same(self._before[slots[0]], self._pristine[slots[0]]):
                self.written |= set(slots)

    def _has_changed(self) -> bool:
        """Tell if there are other objects than at the last look. A call asks this at each of its
        layers, of all its modules; so no object is touched by code in Python.
        """
        now = itertools.chain.from_iterable(map(dict.values, self._spaces))
        count = sum(map(len, self._spaces))
        if count == len(self._last) and all(map(operator.is_, now, self._last)):
            return False
        self._last = [value for space in self._spaces for value in space.values()]
        return True

    def compare_tensors(self) -> None:
        """Note the tensors that have other numbers now."""
        for slot, value in self._before.items():
            if isinstance(value, Tensor) and not same(value, self._pristine[slot]):
                self.written.add(slot)


def _carries(model: nn.Module, first: Inputs, second: Inputs) -> bool:
    """Tell if the outputs of one batch depend on the batch before it."""
    with undisturbed(model):
        alone = call_alone(model, second, 1)
    with undisturbed(model):
        call_alone(model, first, 0)
        try:
            behind = call_alone(model, second, 1)
        except Exception:  # noqa: BLE001  # what the first left does not fit the second
            return False
    return not close(alone, behind)


def _extremes(batches: Sequence[Inputs]) -> list[Inputs]:
    """Return the smallest and the largest batch among those of other shapes, from the third on."""
    others = [batch for batch in batches[2:] if _shapes(batch) != _shapes(batches[0])]
    if not others:
        return []
    smallest = min(others, key=_size)
    largest = max(others, key=_size)
    return [smallest] if smallest is largest else [smallest, largest]


def _shapes(batch: Inputs) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in named_tensors(batch)]


def _size(batch: Inputs) -> int:
    return sum(tensor.numel() for _, tensor in named_tensors(batch))


def _close(tensor: Tensor, other: Tensor, tolerance: float) -> bool:
    if tensor.shape != other.shape or tensor.dtype != other.dtype or not tensor.numel():
        return tensor.shape == other.shape and tensor.dtype == other.dtype
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.equal(tensor, other)
    finite = tensor[tensor.isfinite()].abs()
    atol = tolerance * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(tensor, other, rtol=0, atol=atol, equal_nan=True)
