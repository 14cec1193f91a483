"""The outputs of a model in parts, each of which is compared with full precision in its own way.

A part is one floating-point tensor; it may stand anywhere in tuples, lists, mappings and
dataclasses. Class logits are compared by their KL divergence: a tensor that is called logits
(``logits``, ``start_logits``), or one that is returned alone, without a name. Everything else, such
as embeddings, boxes and feature maps, is compared by its relative squared error. These measures are
our choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.network.forward import Inputs
from octavo.network.nested import named_tensors

__all__ = ["Part", "alike", "described", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One tensor of a model's outputs, float32 as ``parts_of`` returns it.

    Attributes:
        name: its path in the outputs, ``boxes`` or ``state.0``; empty if the model returns
            nothing else.
        classes: True if its rows are log probabilities of classes.
        rows: (rows, classes) or (rows, features).
        temperature: the number by which the logits of classes were divided.

    """

    name: str
    classes: bool
    rows: Tensor
    temperature: float = 1.0

    def lost(self, full: "Part") -> Tensor:
        """Return what the part loses of full precision, summed over all rows: a scalar.

        For classes it is the KL divergence times the squared temperature, so that its size hardly
        depends on the temperature (Hinton et al., arXiv 1503.02531, section 2), else the squared
        error. Divided by ``full.unit()``, it is a mean divergence or a relative squared error.
        """
        if not self.classes:
            return (self.rows - full.rows).square().sum()
        divergence = F.kl_div(self.rows, full.rows, reduction="none", log_target=True)
        ruled_out = full.rows == -torch.inf  # classes that the model excludes count nothing
        return self.temperature**2 * divergence.masked_fill(ruled_out, 0).sum()

    def in_double(self) -> "Part":
        """Return the part in float64, its classes normalized anew.

        In float32 the rounding errors of two logarithms outweigh a small divergence.
        """
        rows = self.rows.double()
        return replace(self, rows=rows.log_softmax(-1) if self.classes else rows)

    def unit(self) -> float:
        """Return the number of rows, or the sum of squares: the divisor for :meth:`lost`."""
        unit = float(len(self.rows) if self.classes else self.rows.square().sum())
        return unit or 1.0


def parts_of(outputs: Any, inputs: Inputs | None = None, *, temperature: float = 1.0) -> list[Part]:
    """Split a model's outputs into parts.

    Classes lie along the last dimension of logits with 2 or 3 dimensions, ``(N, C)`` or ``(N, L,
    C)``, and along the second dimension of logits with more, ``(N, C, H, W)``, as in torch's cross
    entropy. Rows ``(N, L)`` that are padding do not count. Padding is known if the inputs are a
    mapping with an ``attention_mask``, which is 0 there, or a ``..._padding_mask``, which is True.

    Args:
        outputs: the value that the model returned.
        inputs: the inputs that it was called with.
        temperature: logits are divided by it.

    """
    kept = _mask(inputs) if isinstance(inputs, Mapping) else None
    tensors = [(name, t) for name, t in named_tensors(outputs) if t.is_floating_point()]
    alone = len(tensors) == 1
    return [_part(name, tensor, kept, temperature, alone=alone) for name, tensor in tensors]


def alike(parts: Sequence[Part], others: Sequence[Part]) -> bool:
    """Tell whether both have the same parts in the same shapes, and at least one."""
    return bool(parts) and [_form(part) for part in parts] == [_form(part) for part in others]


def described(parts: Sequence[Part]) -> str:
    """Return the names and shapes of the parts, on one line."""
    return (
        ", ".join(f"{part.name} {tuple(part.rows.shape)}".strip() for part in parts)
        or "no floating-point tensor"
    )


def _part(
    name: str, tensor: Tensor, kept: Tensor | None, temperature: float, *, alone: bool
) -> Part:
    classes = tensor.dim() > 1 and _is_logits(name, alone=alone)
    if classes and tensor.dim() > 3:
        tensor = tensor.movedim(1, -1)
    if kept is not None and tensor.dim() == 3 and tensor.shape[:2] == kept.shape:
        rows = tensor[kept]
    else:
        rows = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.reshape(-1, 1)
    if not classes or rows.shape[1] < 2:  # the softmax over a single class is always 1
        return Part(name, False, rows.float())
    return Part(name, True, F.log_softmax(rows.float() / temperature, -1), temperature)


def _is_logits(name: str, *, alone: bool) -> bool:
    """Tell from a tensor's name, or from its being the only one, whether it has class logits."""
    last = name.rpartition(".")[2]
    is_named = bool(last) and not last.isdigit()
    return "logits" in last.lower() if is_named else alone


def _mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return the rows (N, L) that count; None if all do."""
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() == 2:
            if key == "attention_mask":
                return value != 0
            if key.endswith("padding_mask") and value.dtype is torch.bool:
                return ~value
    return None


def _form(part: Part) -> tuple[str, bool, torch.Size]:
    return part.name, part.classes, part.rows.shape
