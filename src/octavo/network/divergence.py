"""The default objective: minus what a network's outputs lose of full precision."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.forward import Inputs, call, observing
from octavo.network.outputs import Part, alike, described, parts_of

__all__ = ["TEMPERATURE", "Divergence", "first_rows", "outputs_of"]

# Outputs are compared at this temperature, as in distillation. A network is nearly certain about
# most of its inputs: at temperature 1 a few rows make up most of the divergence. Temperatures are
# compared in benchmarks/objective.py.
TEMPERATURE = 8.0


class Divergence:
    """The divergence of outputs from those of the network in full precision.

    For class logits it is the KL divergence at TEMPERATURE, times TEMPERATURE squared, the mean
    over rows; for everything else the relative squared error. Several parts are summed: see
    ``octavo.network.outputs``.

    Args:
        model: the network in full precision.
        batches: the inputs that networks are measured on.

    Raises:
        PlanError: the model returns nothing to compare.

    """

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        self.batches = batches
        with observing(model):
            self._full = outputs_of(model, batches)
        # The unit of each part, over all batches: its rows, or the sum of its squares.
        self._units = [
            sum(part.unit() for part in batches_of_part)
            for batches_of_part in zip(*self._full, strict=True)
        ]

    def of(self, network: nn.Module) -> float:
        """Return the objective of a network, which must be in evaluation mode."""
        return self.objective(outputs_of(network, self.batches))

    def objective(self, outputs: Sequence[Sequence[Part]]) -> float:
        """Return minus the sum of what each part loses, for the parts of every batch.

        Raises:
            PlanError: the outputs have another form than those in full precision.

        """
        lost = [0.0] * len(self._units)
        for parts, full_parts in zip(outputs, self._full, strict=True):
            if not alike(parts, full_parts):
                raise PlanError(
                    "expected outputs of the same form whatever the weights, got "
                    f"{described(parts)} where full precision gave {described(full_parts)}; "
                    "give an objective of your own"
                )
            for index, (part, full_part) in enumerate(zip(parts, full_parts, strict=True)):
                lost[index] += float(part.in_double().lost(full_part.in_double()))
        total: float = sum(loss / unit for loss, unit in zip(lost, self._units, strict=True))
        return -total

    @property
    def width(self) -> int:
        """Columns of all parts together."""
        return sum(part.rows.shape[1] for part in self._full[0])

    def first_parts(self, rows: int) -> tuple[Part, ...]:
        """Return the first rows of each part of the outputs in full precision."""
        first = zip(self._full[0], first_rows(self._full, rows), strict=True)
        return tuple(replace(part, rows=rows) for part, rows in first)


def outputs_of(model: nn.Module, batches: Sequence[Inputs]) -> list[list[Part]]:
    """Return the parts of what the model returns, for each batch.

    Raises:
        PlanError: the model returns nothing to compare.

    """
    return [_parts(call(model, batch), batch) for batch in batches]


def first_rows(outputs: Sequence[Sequence[Part]], rows: int) -> tuple[Tensor, ...]:
    """Return the first rows of each part, over all batches."""
    return tuple(
        torch.cat([part.rows for part in batches_of_part])[:rows].clone()
        for batches_of_part in zip(*outputs, strict=True)
    )


def _parts(outputs: Any, batch: Inputs) -> list[Part]:
    parts = parts_of(outputs, batch, temperature=TEMPERATURE)
    if not parts:
        raise PlanError(
            "expected the model to return floating-point tensors, got "
            f"{type(outputs).__name__}; give an objective of your own"
        )
    return parts
