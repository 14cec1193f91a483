"""Copies of models and of their inputs."""

import copy
from typing import Any, TypeVar

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from octavo.errors import PlanError, brief
from octavo.network.nested import mapped

__all__ = ["copied", "fresh"]

T = TypeVar("T")


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
    """Return a deep copy of a model, or of anything that holds models and tensors.

    Args:
        value: the model.
        memo: the copy of each object by its id, as ``copy.deepcopy`` takes and fills it. What is in
            it already is shared instead of copied.

    Raises:
        PlanError: something in it cannot be copied.

    """
    try:
        with _WithGraphTensors():
            return copy.deepcopy(value, memo)
    except Exception as error:  # whatever the parts of a model raise
        first = value[0] if isinstance(value, tuple) else value
        raise PlanError(
            f"{type(first).__name__}: octavo works on a copy, and copy.deepcopy cannot make one: "
            f"{brief(error)}"
        ) from error


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
