"""The place where a layer freezes: all batches stand there, so what a weight does to the outputs of
the layer's module can be measured instead of derived.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.network.kinds import ONE_WEIGHT
from octavo.network.layer_inputs import is_plain
from octavo.network.layers import Layer
from octavo.network.moments import Moments
from octavo.network.nested import named_tensors
from octavo.ptq.meeting import Meeting, moments_at, one_by_one

__all__ = ["Site"]


@dataclass(frozen=True, eq=False)
class Site:
    """A layer, with the meetings of all batches at its module.

    Attributes:
        layer: the layer, whose weight is the full-precision one.
        solving: the meetings that the layer is solved from.
        held_out: the meetings of inputs that no layer is solved from; empty if there are none.

    """

    layer: Layer
    solving: Sequence[Meeting]
    held_out: Sequence[Meeting]

    @classmethod
    def of(cls, layer: Layer, meetings: Sequence[Meeting]) -> "Site":
        """Divide the meetings of a layer; if only inputs reach it that were set aside, it is solved
        from these.
        """
        solving = [meeting for meeting in meetings if not meeting.held_out]
        held_out = [meeting for meeting in meetings if meeting.held_out]
        return cls(layer, solving or held_out, held_out)

    @property
    def is_described(self) -> bool:
        """True if the closed form describes the layer: its outputs are the product of its weight
        and of inputs that do not depend on the weight.

        A layer of another class than torch's own may scale, mask or standardize its weight first.
        The inputs of a recurrent layer are its own states.
        """
        if self.layer.form == "recurrent":
            return False
        return self.layer.form not in ONE_WEIGHT or is_plain(self.layer.module)

    def moments(self, weight: Tensor | None = None) -> Moments:
        """Return the moments of the layer's inputs while it has ``weight``; None: its own.

        Only a recurrent layer's inputs depend on its weight: they are its states.
        """
        with self._with(weight):
            return moments_at(self.layer, self.solving)

    def error(self, weight: Tensor) -> float:
        """Return the relative error of the module's outputs while the layer has ``weight``.

        It is measured on the held-out inputs; if there are none, on those that the layer is solved
        from. A recurrent layer runs through all its steps, so the errors of its states feed back.
        It is infinite where outputs become NaN or infinite that are finite in full precision.
        """
        squared_error = 0.0
        squared_output = 0.0
        for full, now in self._compared(weight):
            counted = full.isfinite()  # what full precision rules out counts nothing
            squared_error += _squared_norm(torch.where(counted, now - full, 0))
            squared_output += _squared_norm(torch.where(counted, full, 0))
        if not math.isfinite(squared_error):
            return math.inf
        return math.sqrt(squared_error / squared_output) if squared_output > 0 else 0.0

    def _compared(self, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the module's outputs in full precision and those with ``weight``."""
        with self._with(weight) as own:
            for meeting in one_by_one(self.held_out or self.solving):
                full = dict(named_tensors(self._full_output(meeting, own)))
                now = dict(named_tensors(meeting.output()))
                both = [(tensor, now[name]) for name, tensor in full.items() if name in now]
                yield from (pair for pair in both if _is_comparable(*pair))

    def _full_output(self, meeting: Meeting, own: Tensor | None) -> Any:
        """Return the module's output in full precision, or, if there is none to compare with, that
        of its full-precision weight.
        """
        if meeting.full is not None:
            return meeting.full.output
        with self._with(own):
            return meeting.output()

    @contextlib.contextmanager
    def _with(self, weight: Tensor | None) -> Iterator[Tensor | None]:
        """Give the layer another weight for a while, and return a copy of its own."""
        if weight is None:
            yield None
            return
        own = self.layer.weight.clone()
        self.layer.weight.copy_(weight)
        try:
            yield own
        finally:
            self.layer.weight.copy_(own)


def _squared_norm(tensor: Tensor) -> float:
    """Return the sum of the squares, each of which float64 has room for."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _is_comparable(tensor: Tensor, other: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.shape == other.shape
