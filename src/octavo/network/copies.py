"""Copies of models and of their inputs."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from octavo.errors import PlanError, brief
from octavo.network.memory import sharing
from octavo.network.nested import leaves, mapped
from octavo.network.process_wide import ProcessWide

__all__ = ["copied", "fresh"]

T = TypeVar("T")
DEEPER = 8  # times as deep as Python allows


class _WithGraphTensors(TorchFunctionMode):
    """A mode in which ``copy.deepcopy`` takes tensors that belong to a graph: their copies are
    constants.

    A forward pass that keeps one of its values on the module leaves such a tensor there.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copied(value: T, memo: dict[int, Any] | None = None) -> T:
    """Return a deep copy of a model, or of a tuple that holds one. Parameters that are tied in
    memory are so in the copy too, which ``copy.deepcopy`` by itself would undo.

    Args:
        value: the model.
        memo: the copy of each object by its id, as ``copy.deepcopy`` takes and fills it. What is in
            it already is shared instead of copied.

    Raises:
        PlanError: something in it cannot be copied.

    """
    memo = {} if memo is None else memo
    try:
        with _WithGraphTensors(), _deep:
            _copy_shared(value, memo)
            return copy.deepcopy(value, memo)
    except Exception as error:  # whatever the parts of a model raise
        first = value[0] if isinstance(value, tuple) else value
        raise PlanError(
            f"{type(first).__name__}: octavo works on a copy, and copy.deepcopy cannot make one: "
            f"{brief(error)}"
        ) from error


@contextlib.contextmanager
def _deeper() -> Iterator[None]:
    """Let Python call deeper for a while: a copy takes several times the calls of a forward pass
    for each level of modules in modules.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPER * before)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


_deep = ProcessWide(_deeper)


def _copy_shared(value: Any, memo: dict[int, Any]) -> None:
    """Put copies of the parameters that share memory into the memo, sharing memory again."""
    models = [one for one in leaves(value) if isinstance(one, nn.Module)]
    parameters = [parameter for model in models for parameter in model.parameters()]
    for first, *others in sharing(parameters):
        copied_first = copy.deepcopy(first, memo)
        for other in others:
            if id(other) not in memo:
                memo[id(other)] = nn.Parameter(copied_first.data, other.requires_grad)


def fresh(inputs: Any) -> Any:
    """Return a copy of inputs for one call of a model, which may write into them."""
    tensors: dict[int, Tensor] = {}  # a tensor that is passed twice stays one tensor

    def clone(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return copied(leaf)
        if not isinstance(leaf, Tensor):
            return _copied_if_possible(leaf)
        if id(leaf) not in tensors:
            tensors[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return tensors[id(leaf)]

    return mapped(inputs, clone)


def _copied_if_possible(leaf: Any) -> Any:
    """Return a copy of an object among the inputs, or the object itself if it has no copy."""
    try:
        return copied(leaf)
    except PlanError:
        return leaf
