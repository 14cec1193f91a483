"""The default objective: minus what a network's outputs lose of full precision."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.calls import call_alone, undisturbed
from octavo.network.conduct import Conduct
from octavo.network.forward import Inputs, call, observing
from octavo.network.outputs import Part, alike, described, parts_of

__all__ = ["TEMPERATURE", "Divergence", "first_rows", "outputs_of"]

# Outputs are compared at this temperature, as in distillation. A network is nearly certain about
# most of its inputs: at temperature 1 a few rows make up most of the divergence. Temperatures are
# compared in benchmarks/objective.py.
TEMPERATURE = 8.0


class Divergence:
    """The divergence of outputs from those of the network in full precision.

    For class logits it is the KL divergence at a temperature, times its square, the mean over
    rows; for everything else the relative squared error. Several parts are summed: see
    ``octavo.network.outputs``.

    Args:
        model: the network in full precision.
        batches: the inputs that networks are measured on.
        conduct: what a call of the networks does beside; None if it is not known.
        temperature: the number by which logits are divided.

    Raises:
        PlanError: the model returns nothing to compare.

    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Inputs],
        conduct: Conduct | None = None,
        temperature: float = TEMPERATURE,
    ) -> None:
        self.batches = batches
        self._temperature = temperature
        self._conduct = conduct
        with observing(model):
            self._full = self.outputs(model)
        # The unit of each part, over all batches: its rows, or the sum of its squares.
        self._units = [
            sum(part.unit() for part in batches_of_part)
            for batches_of_part in zip(*self._full, strict=True)
        ]

    def of(self, network: nn.Module) -> float:
        """Return the objective of a network, which must be in evaluation mode."""
        return self.objective(self.outputs(network))

    def outputs(self, network: nn.Module) -> list[list[Part]]:
        """Return the parts of what a network returns, for each batch."""
        return outputs_of(network, self.batches, self._conduct, self._temperature)

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
    def of_constant(self) -> float:
        """The divergence of a network that returns the mean output whatever its inputs are."""
        by_part = zip(*self._full, strict=True)
        means = [_means([part.in_double() for part in parts]) for parts in by_part]
        return -self.objective(list(zip(*means, strict=True)))

    @property
    def width(self) -> int:
        """Columns of all parts together."""
        return sum(part.rows.shape[1] for part in self._full[0])

    def first_parts(self, rows: int) -> tuple[Part, ...]:
        """Return the first rows of each part of the outputs in full precision."""
        first = zip(self._full[0], first_rows(self._full, rows), strict=True)
        return tuple(replace(part, rows=rows) for part, rows in first)


def outputs_of(
    model: nn.Module,
    batches: Sequence[Inputs],
    conduct: Conduct | None = None,
    temperature: float = TEMPERATURE,
) -> list[list[Part]]:
    """Return the parts of what the model returns, for each batch; the model and the batches stay as
    they are.

    Args:
        model: the model.
        batches: its inputs.
        conduct: what a call does beside; None if it is not known.
        temperature: the number by which logits are divided.

    Raises:
        PlanError: the model returns nothing to compare.

    """
    if conduct is not None and conduct.pure:
        return [_parts(call(model, batch), batch, temperature) for batch in batches]
    with undisturbed(model, None if conduct is None else conduct.written):
        return [
            [replace(part, rows=part.rows.clone()) for part in parts]  # the next call may write it
            for parts in (
                _parts(call_alone(model, batch, number), batch, temperature)
                for number, batch in enumerate(batches)
            )
        ]


def first_rows(outputs: Sequence[Sequence[Part]], rows: int) -> tuple[Tensor, ...]:
    """Return the first rows of each part, over all batches."""
    return tuple(
        torch.cat([part.rows for part in batches_of_part])[:rows].clone()
        for batches_of_part in zip(*outputs, strict=True)
    )


def _parts(outputs: Any, batch: Inputs, temperature: float) -> list[Part]:
    parts = parts_of(outputs, batch, temperature=temperature)
    if not parts:
        raise PlanError(
            "expected the model to return floating-point tensors, got "
            f"{type(outputs).__name__}; give an objective of your own"
        )
    return parts


def _means(parts: Sequence[Part]) -> list[Part]:
    """Return one part of all batches with each row replaced by the mean row: for classes, by the
    mean of the probabilities. Batches whose rows have other lengths have a mean of their own.
    """
    alike_rows = len({part.rows.shape[1] for part in parts}) == 1
    groups = [parts] if alike_rows else [[part] for part in parts]
    return [
        replace(part, rows=_mean_row(group).expand_as(part.rows))
        for group in groups
        for part in group
    ]


def _mean_row(parts: Sequence[Part]) -> Tensor:
    count = max(1, sum(len(part.rows) for part in parts))
    nothing = parts[0].rows.new_zeros((), dtype=torch.double)
    if parts[0].classes:
        total = sum((part.rows.exp().sum(0) for part in parts), nothing)
        return (total / count).log()
    return sum((part.rows.sum(0) for part in parts), nothing) / count
