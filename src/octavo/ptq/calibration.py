"""Post-training quantization (PTQ): quantize from a few hundred unlabelled inputs, without labels
and without training.

Layers freeze in forward order. Each is fitted to the outputs that it had in full precision, from
the inputs that it has now that the layers ahead of it are quantized. The full-precision and the
quantized network run side by side and stop at each layer, so that all of it costs two forward
passes and the linear algebra.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from octavo._deprecated import renamed_arguments
from octavo.formats.codebook import Fit, Per
from octavo.formats.width import Width, WidthLike
from octavo.network.copies import copied
from octavo.network.faithful import faithful_copy
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.forward import (
    Inputs,
    batches_of,
    device_of,
    naming_errors,
    observing,
    on_device,
)
from octavo.network.layers import Layer
from octavo.network.moments import Moments
from octavo.plan import planned_layers
from octavo.progress import Event, Progress, silent
from octavo.ptq.absorption import absorb_factor, absorbing_norms
from octavo.ptq.float_inputs import check_reached, freeze_from_float
from octavo.ptq.layer_solver import solve
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.settings import PtqOrder, PtqSettings
from octavo.storage.packed import Packed, check_state, pack
from octavo.storage.quantized import Quantized

__all__ = ["LayerResult", "calibrate"]


@dataclass(frozen=True)
class LayerResult:
    """The outcome of one layer: its relative output errors, and how many layers are done.

    The ``Event`` that has it as its detail says the last two as well. They are here for callbacks
    of the old ``observe=``, which are given no event.

    Attributes:
        name: the layer.
        bits: its width.
        nearest: relative output error if every weight took its nearest level.
        compensated: relative output error of the codes that were chosen.
        done: how many layers are done, this one included.
        layers: how many layers the plan names.

    """

    name: str
    bits: Width
    nearest: float
    compensated: float
    done: int
    layers: int


@renamed_arguments(observe="progress", correct="")
def calibrate(
    model: nn.Module,
    plan: Mapping[str, WidthLike],
    inputs: Iterable[Inputs],
    *,
    order: PtqOrder = PtqSettings.order,
    fit: Fit = PtqSettings.fit,
    per: Per = PtqSettings.per,
    damp: float = PtqSettings.damp,
    sequential: bool = PtqSettings.sequential,
    absorb: bool = PtqSettings.absorb,
    progress: Progress | None = None,
) -> Packed:
    """Quantize ``model`` by PTQ; the model is left as it was.

    Args:
        model: the trained network.
        plan: layer name to bits, or to an ``Apot``: a ``Plan`` or a dict. Layers that it does not
            name stay in float.
        inputs: batches that the model is called with, unlabelled: tensors, or tuples or dicts of
            arguments.
        order: the order in which weights freeze. ``"gptq"`` has one order for all rows of a layer.
            ``"distance"`` freezes the cheapest weight of each row first (OBQ; DNQ's criterion,
            weighted by the inputs), ``"magnitude"`` the largest (INQ's criterion).
        fit: the choice of the largest exponent: ``"max"`` is INQ's formula, ``"mse"`` takes the
            exponent of least squared error of the layer's outputs.
        per: one largest exponent for each output ``"channel"``, or one for the whole tensor.
        damp: share of the mean diagonal of the inputs' second moment that is added to its diagonal.
        sequential: each layer sees the inputs that the quantized layers ahead of it produce; if
            false, every layer sees full-precision inputs. The first gives better networks, and
            keeps in memory what all inputs have become at one layer; the second streams them.
        absorb: give each channel ahead of a batch norm a scale of its own, which the batch norm
            cancels by its running statistics. This is far better where channels have few weights,
            as in depthwise convolutions. ``per`` must be ``"channel"``.
        progress: called after each layer with an ``Event`` of the phase ``"calibrate"``, whose
            detail is a ``LayerResult``.

    Raises:
        PlanError: an unknown layer, no inputs, inputs that the model does not take or that are not
            finite, or a layer that no input reaches; the message names the layer.

    """
    settings = PtqSettings(
        order=order, fit=fit, per=per, damp=damp, sequential=sequential, absorb=absorb
    )
    check_state(model)
    planned_layers(model, plan)  # checks the plan before anything is copied or read
    warn_if_mostly_float(model)
    batches = iter(batches_of(inputs))
    first = [on_device(batch, device_of(model)) for batch in itertools.islice(batches, 1)]
    quantized = faithful_copy(model, *first)
    full = copied(model) if sequential else quantized
    planned = planned_layers(quantized, plan)
    layers = [layer for layer, _ in planned]
    with observing(full), observing(quantized), naming_errors(quantized, full):
        norms: dict[str, nn.Module] = {}
        if absorb and first:
            norms = absorbing_norms(quantized, layers, first[0])
        widths = {layer.name: bits for layer, bits in planned}
        freeze = _Freezer(widths, settings, norms, progress or silent)
        inputs = itertools.chain(_handed_over(first), batches)
        if sequential:
            frozen = freeze_sequentially(full, quantized, layers, inputs, freeze)
        else:
            frozen = freeze_from_float(quantized, layers, inputs, freeze)
    for layer in layers:
        check_reached(layer.name, reached=layer.name in frozen)
    return pack(quantized, {layer.name: frozen[layer.name] for layer in layers})


def _handed_over(batches: list[Inputs]) -> Iterator[Inputs]:
    """Yield batches and let go of them, so that inputs which are streamed do not stay in memory."""
    while batches:
        yield batches.pop(0)


class _Freezer:
    """A function of a layer that solves it and puts the solution into the network."""

    def __init__(
        self,
        widths: Mapping[str, Width],
        settings: PtqSettings,
        norms: Mapping[str, nn.Module],
        progress: Progress,
    ) -> None:
        self._widths = widths
        self._settings = settings
        self._norms = norms  # by layer name, the batch norm that cancels the layer's scale
        self._progress = progress
        self._count = itertools.count(1)

    def __call__(self, layer: Layer, moments: Moments) -> Quantized:
        """Freeze a layer, from the moments of its inputs."""
        norm = self._norms.get(layer.name)
        bits = self._widths[layer.name]
        solution = solve(layer, moments, bits, self._settings, scaled=norm is not None)
        quantized = Quantized.of(layer, solution.codebook, solution.codes.cpu())
        with torch.no_grad():
            layer.weight.copy_(quantized.weight())
        if norm is not None and solution.factor is not None:
            absorb_factor(layer, norm, solution.factor)
        done = next(self._count)
        total = len(self._widths)
        result = LayerResult(layer.name, bits, solution.nearest, solution.compensated, done, total)
        self._progress(Event("calibrate", done, total, detail=result))
        return quantized
