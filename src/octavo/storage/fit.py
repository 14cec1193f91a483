"""The check that a model can take what a packed file has: names, shapes, types, shared memory."""

from collections.abc import Hashable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.memory import memory_of
from octavo.storage.quantized import Quantized

__all__ = ["Stored", "check_fit"]

Stored: TypeAlias = Quantized | Tensor  # what a file has of a parameter

EXACT = (torch.float32, torch.float64)  # types that hold every level


def check_fit(values: Mapping[str, Stored], model: nn.Module, optional: set[str]) -> None:
    """Make sure that a model can take what a file has, before anything is written into it.

    No quantized tensor is decoded but where its levels have to be compared.

    Args:
        values: what is stored, by the name of the parameter or buffer.
        model: the model.
        optional: names that the model may lack.

    Raises:
        PlanError: the model lacks a tensor, has another one, or one that cannot hold the values.

    """
    state = model.state_dict()
    first: dict[Hashable, Stored] = {}  # by the memory of the target, the first value it gets
    for name in {**values, **state}:
        if name in optional and name not in state:
            continue
        if name not in state or name not in values:
            side = "the model" if name in values else "the packed network"
            raise PlanError(f"{name}: missing in {side}; expected the architecture that was packed")
        target = state[name]
        _check_tensor(name, values[name], target)
        other = first.setdefault(memory_of(target), values[name])
        if other is not values[name] and not _same(_decoded(other), _decoded(values[name])):
            raise PlanError(
                f"{name}: the model shares this tensor with another that was packed with other "
                "values"
            )


def _check_tensor(name: str, value: Stored, target: Tensor) -> None:
    """Raise PlanError unless the model's tensor can hold the value exactly."""
    if target.shape != value.shape:
        raise PlanError(
            f"{name}: expected shape {tuple(value.shape)} as packed, "
            f"got {tuple(target.shape)} in the model"
        )
    if target.is_meta:
        raise PlanError(
            f"{name}: expected a model with memory, got one on the meta device: "
            "call to_empty() first"
        )
    exact = EXACT if isinstance(value, Quantized) else (value.dtype,)
    if target.dtype not in exact and not _survives(_decoded(value), target.dtype):
        raise PlanError(
            f"{name}: {target.dtype} cannot hold its packed values exactly; use a float32 model"
        )


def _decoded(stored: Stored) -> Tensor:
    return stored.weight() if isinstance(stored, Quantized) else stored


def _survives(value: Tensor, dtype: torch.dtype) -> bool:
    """Tell if a type holds every number of a tensor exactly."""
    return _same(value.to(dtype).to(value.dtype), value)


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal; NaN equals NaN."""
    return a is b or (a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()))
