"""What a model returns, in parts, each compared with full precision by a measure of its own.

A part is one floating-point tensor, wherever it stands in tuples, lists, mappings and dataclasses.
Class logits are compared by their KL divergence: a tensor called logits (``logits``,
``start_logits``), or one that is returned alone, without a name. Everything else, such as
embeddings, boxes and feature maps, is compared by its relative squared error. (Ours.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.network.calling import Inputs
from octavo.network.nested import named_tensors

__all__ = ["Part", "alike", "described", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One tensor of a model's outputs, float32.

    Attributes:
        name: where it stands, ``boxes`` or ``state.0``; empty where it is all that the model
            returns.
        classes: whether its rows are log probabilities of classes.
        rows: (rows, classes) or (rows, features).

    """

    name: str
    classes: bool
    rows: Tensor

    def lost(self, full: "Part") -> Tensor:
        """KL divergence from full precision, or squared error, summed over all rows: a scalar, in
        units of ``full.unit()``.
        """
        if not self.classes:
            return (self.rows - full.rows).square().sum()
        divergence = F.kl_div(self.rows, full.rows, reduction="none", log_target=True)
        return divergence.masked_fill(
            full.rows == -torch.inf, 0
        ).sum()  # classes ruled out count nothing

    def unit(self) -> float:
        """Rows, or the sum of squares: by it, what is lost becomes the mean divergence or the
        relative squared error.
        """
        return float(len(self.rows) if self.classes else self.rows.square().sum()) or 1.0


def parts_of(outputs: Any, inputs: Inputs | None = None, *, temperature: float = 1.0) -> list[Part]:
    """The parts of a model's outputs.

    Classes lie along the last dimension of logits with 2 or 3 dimensions, ``(N, C)`` or ``(N, L,
    C)``, and along the second of those with more, ``(N, C, H, W)``, where torch's cross entropy has
    them. Rows ``(N, L)`` that are padding do not count: where the inputs are a dict with an
    ``attention_mask``, which is 0 there, or a ``..._padding_mask``, which is True.

    Args:
        outputs: what the model returned.
        inputs: what it was called with.
        temperature: by which logits are divided.

    """
    kept = _mask(inputs) if isinstance(inputs, Mapping) else None
    tensors = [
        (name, tensor) for name, tensor in named_tensors(outputs) if tensor.is_floating_point()
    ]
    return [
        _part(name, tensor, kept, temperature, alone=len(tensors) == 1) for name, tensor in tensors
    ]


def alike(some: Sequence[Part], others: Sequence[Part]) -> bool:
    """Whether both are the same parts in the same shapes, and at least one."""
    return bool(some) and [_form(part) for part in some] == [_form(part) for part in others]


def described(parts: Sequence[Part]) -> str:
    """Names and shapes of the parts, on one line."""
    return (
        ", ".join(f"{part.name} {tuple(part.rows.shape)}".strip() for part in parts)
        or "no floating-point tensor"
    )


def _part(
    name: str, tensor: Tensor, kept: Tensor | None, temperature: float, *, alone: bool
) -> Part:
    last = name.rpartition(".")[2]
    named = not last.isdigit() and bool(last)
    classes = tensor.dim() > 1 and ("logits" in last.lower() if named else alone)
    axis = 1 if classes and tensor.dim() > 3 else -1
    tensor = tensor.movedim(axis, -1) if tensor.dim() else tensor.reshape(1)
    masked = kept is not None and tensor.dim() == 3 and tensor.shape[:2] == kept.shape
    rows = (
        tensor[kept]
        if masked
        else tensor.flatten(0, -2)
        if tensor.dim() > 1
        else tensor.unsqueeze(1)
    )
    if not classes or rows.shape[1] < 2:  # a softmax over a single class is 1 whatever it is given
        return Part(name, False, rows.float())
    return Part(name, True, F.log_softmax(rows.float() / temperature, -1))


def _mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Which rows (N, L) count; None where all do."""
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() == 2:
            if key == "attention_mask":
                return value != 0
            if key.endswith("padding_mask") and value.dtype is torch.bool:
                return ~value
    return None


def _form(part: Part) -> tuple[str, bool, torch.Size]:
    return part.name, part.classes, part.rows.shape
