"""A layer's call at which the quantized network waits, beside the same call in full precision: the
layer's inputs, and how far its outputs have drifted from full precision.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.conduct import close
from octavo.network.kinds import ONE_WEIGHT
from octavo.network.layer_inputs import called_again, layer_inputs, layer_outputs
from octavo.network.layers import Layer
from octavo.network.moments import Moments
from octavo.network.recurrent import gate_partner
from octavo.network.spilling import PassMemory
from octavo.network.stepping import Stop
from octavo.network.world import World

__all__ = ["Meeting", "add_moments", "moments_at", "one_by_one"]


@dataclass(frozen=True, eq=False)
class Meeting:
    """A module at which the quantized network waits, on one batch.

    Attributes:
        stop: the call of a module that the quantized network is about to make.
        full: the same call in the full-precision network, with its output; None if that network
            took another path, or gives other outputs each time.
        world: the world of the quantized network's pass; None if it needs none.
        held_out: True if the batch is not one of those that layers are solved from.
        memory: the memory of both passes; None if it stays where it is.

    """

    stop: Stop
    full: Stop | None
    world: World | None = None
    held_out: bool = False
    memory: PassMemory | None = None

    def output(self) -> Any:
        """Compute the module's output with its weights of now."""
        stop = self.stop
        with self.world or contextlib.nullcontext():
            return called_again(stop.module, stop.args, stop.kwargs)


def one_by_one(meetings: Iterable[Meeting]) -> Iterator[Meeting]:
    """Yield meetings; what was read of one from disk leaves the memory before the next comes."""
    for meeting in meetings:
        yield meeting
        if meeting.memory is not None:
            meeting.memory.give_back()


def moments_at(layer: Layer, meetings: Iterable[Meeting]) -> Moments:
    """Return the moments of the inputs that batches bring to a layer."""
    moments = Moments.of(layer)
    for meeting in one_by_one(meetings):
        add_moments(moments, layer, meeting)
    return moments


def add_moments(moments: Moments, layer: Layer, meeting: Meeting) -> None:
    """Add the inputs that one batch brings to a layer to their moments."""
    stop = meeting.stop
    with meeting.world or contextlib.nullcontext():
        drift = _drift(layer, meeting)
        start = 0
        for problem, columns in layer_inputs(layer, stop.module, stop.args, stop.kwargs):
            end = start + columns.shape[-1]
            moments.add(problem, columns, None if drift is None else drift[..., start:end])
            start = end


def _drift(layer: Layer, meeting: Meeting) -> Tensor | None:
    """Return ``D``, (problems, rows, n): what the layer's full-precision product has beyond that of
    the same weights with the inputs as they are now. None where the two cannot be compared.
    """
    if meeting.full is None:
        return None
    if layer.form in ONE_WEIGHT:  # its outputs are linear in its inputs
        return _output_drift(meeting.stop, meeting.full)
    return _state_drift(layer, meeting.stop, meeting.full) if layer.form == "recurrent" else None


def _output_drift(stop: Stop, full: Stop) -> Tensor | None:
    """Return the drift of the outputs of a layer: they show it."""
    if _is_changed(full):
        return None
    of_full = layer_outputs(stop.module, full.output)
    now = layer_outputs(stop.module, called_again(stop.module, stop.args, stop.kwargs))
    if of_full is None or now is None or of_full.shape != now.shape:
        return None
    return of_full - now


def _is_changed(full: Stop) -> bool:
    """Tell if a hook of the user's own has changed a layer's output."""
    module = full.module
    if len(module._forward_hooks) <= 1:  # the pass itself has one, where it stops
        return False
    return not close(full.output, called_again(module, full.args, full.kwargs))


def _state_drift(layer: Layer, stop: Stop, full: Stop) -> Tensor | None:
    """Return the drift of the products inside of a recurrent layer, which no output shows.

    The weight meets other inputs or states than in full precision. Where the products of both
    weights are added in each gate, ``W_hh`` also makes up for what ``W_ih`` is off.
    """
    drift = _product_drift(layer, stop, full)
    partner = gate_partner(layer.module, layer.attribute)
    if drift is None or partner is None:
        return drift
    weight = getattr(layer.module, partner)
    beside = dataclasses.replace(layer, attribute=partner, weight=weight)
    of_partner = _product_drift(beside, stop, full, frozen=True)
    return drift if of_partner is None else drift + of_partner


def _product_drift(layer: Layer, stop: Stop, full: Stop, *, frozen: bool = False) -> Tensor | None:
    """Return ``W (X_full - X)``, with the full-precision ``W``; if it is frozen,
    ``W X_full - Q X``.
    """
    module = full.module
    weight = getattr(module, layer.attribute)
    original = dataclasses.replace(layer, module=module, weight=weight)
    inputs_full = _columns(original, module, full)
    inputs_now = _columns(layer, stop.module, stop)
    if inputs_full.shape != inputs_now.shape:
        return None
    quantized = (layer.weight if frozen else weight).float()
    drift: Tensor = weight.float() @ inputs_full - quantized @ inputs_now
    return drift


def _columns(layer: Layer, module: nn.Module, stop: Stop) -> Tensor:
    pieces = [piece for _, piece in layer_inputs(layer, module, stop.args, stop.kwargs)]
    return torch.cat(pieces, 2)  # (1, columns, n)
