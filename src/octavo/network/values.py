"""The check that a model has values to quantize: in memory, laid out plainly, of a sound size."""

import itertools

import torch
from torch import Tensor, nn

from octavo.errors import PlanError

__all__ = ["check_range", "check_values"]

LARGEST = 1e18  # beyond it, squares overflow in float32


def check_values(model: nn.Module) -> None:
    """Raise PlanError unless every parameter and buffer of a model has values, laid out plainly."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if problem := _problem(tensor):
            raise PlanError(f"{name}: {problem}")


def check_range(model: nn.Module) -> None:
    """Raise PlanError where a weight is so large that sums of squares overflow: whatever it
    multiplies would be blamed for it.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        largest = float(parameter.detach().abs().max())
        if LARGEST < largest < torch.inf:  # what is not finite is named with its layer
            raise PlanError(
                f"{name}: expected weights whose squares fit float32, below about {LARGEST:.0e}, "
                f"got {largest:.1e}"
            )


def _problem(tensor: Tensor) -> str:
    """Return what is wrong with a tensor, and what to do; empty if nothing is."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        return "a lazy module has not seen an input yet; call the model once before"
    if tensor.is_meta:
        return (
            "expected a tensor with values, got one on the device meta; load the weights first, as "
            "by model.to_empty(device=...) and load_state_dict"
        )
    if tensor.layout is not torch.strided:
        return f"expected a dense tensor, got one of the layout {tensor.layout}; make it dense"
    return ""
