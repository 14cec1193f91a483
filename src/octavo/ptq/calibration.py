"""Closed form: quantize from a few hundred unlabelled inputs, without labels and without training.

Layers freeze in forward order. Each is fitted to the outputs that it had in full precision, from
the inputs that it has now that the layers ahead of it are quantized: the full-precision and the
quantized network run side by side and stop at each layer, so that all of it costs two forward
passes and the linear algebra (octavo.ptq.gptq). Biases and batch norms, which stay in float, can be
fitted to the outputs on the way.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.formats.codebook import Fit, Per
from octavo.network.calling import (
    Inputs,
    check_given,
    device_of,
    feed,
    hooked,
    naming_errors,
    observing,
    on_device,
)
from octavo.network.layer_inputs import layer_inputs
from octavo.network.layers import Layer, calling_modules
from octavo.network.moments import Moments
from octavo.plan import planned_layers
from octavo.ptq.absorption import absorb_factor, absorbing_norms
from octavo.ptq.gptq import PtqOrder
from octavo.ptq.layer_solver import Settings, solve
from octavo.ptq.sequential import Freeze, count_calls, freeze_in_forward_order
from octavo.storage.packed import Packed, check_state, pack
from octavo.storage.quantized import Quantized

__all__ = ["LayerResult", "calibrate", "float_moments", "freeze_sequentially"]


@dataclass(frozen=True)
class LayerResult:
    """A layer that was just solved: its relative output errors (see
    ``octavo.ptq.layer_solver.Solution``), and how many layers are done.
    """

    name: str
    bits: int
    nearest: float
    compensated: float
    done: int
    layers: int


def calibrate(
    model: nn.Module,
    plan: Mapping[str, int],
    inputs: Iterable[Inputs],
    *,
    order: PtqOrder = "gptq",
    fit: Fit = "mse",
    per: Per = "channel",
    damp: float = 0.01,
    sequential: bool = True,
    correct: bool = False,
    absorb: bool = False,
    observe: Callable[[LayerResult], None] = lambda _: None,
) -> Packed:
    """Quantize ``model`` in closed form; the model is left as it was.

    Args:
        model: the trained network.
        plan: layer name to bits, or to an ``Apot``: a ``Plan`` or a dict. Layers that it does not
            name stay in float.
        inputs: batches that the model is called with, unlabelled: tensors, or tuples or dicts of
            arguments.
        order: which weights freeze first: ``"gptq"``, one order for all rows of a layer;
            ``"distance"``, the cheapest weight of each row first (OBQ; DNQ's criterion, weighted);
            or ``"magnitude"`` or ``"random"``, to compare with.
        fit: how n1 is chosen: the paper's ``"max"``, or ``"mse"``, by squared error of the layer's
            outputs.
        per: one n1 for a ``"layer"`` or for each output ``"channel"``.
        damp: share of the mean diagonal that is added to the diagonal of the inputs' second moment.
        sequential: each layer sees the layers ahead of it quantized; else every layer sees
            full-precision inputs. The first is better, and keeps what all inputs have become at one
            layer in memory; the second streams them.
        correct: fit biases and batch norms to the full-precision outputs too, where ``sequential``;
            on the reference networks it makes no difference.
        absorb: give each channel ahead of a batch norm a scale of its own, which the norm's running
            statistics absorb; far better where channels have few weights, as in depthwise
            convolutions. ``per`` must be ``"channel"``.
        observe: called after each layer.

    Raises:
        PlanError: an unknown layer, no inputs, inputs that the model does not take or that are not
            finite, or a layer that no input reaches; the message names the layer.

    """
    settings = Settings(order=order, fit=fit, per=per, damp=damp)
    check_state(model)
    planned_layers(model, plan)  # before anything is copied or read
    quantized = copy.deepcopy(model)
    planned = [layer for layer, _ in planned_layers(quantized, plan)]
    freeze = _Freezer(
        {layer.name: bits for layer, bits in planned_layers(quantized, plan)}, settings, observe
    )
    with observing(model), observing(quantized), naming_errors(quantized, model):
        if absorb and (inputs := list(inputs)):
            freeze.norms |= absorbing_norms(
                quantized, planned, on_device(inputs[0], device_of(model))
            )
        if sequential:
            freeze_sequentially(model, quantized, planned, inputs, freeze, correct=correct)
        else:
            _freeze_from_float(quantized, planned, inputs, freeze)
    for layer in planned:
        _check_reached(layer.name, reached=layer.name in freeze.frozen)
    return pack(quantized, {layer.name: freeze.frozen[layer.name] for layer in planned})


class _Freezer:
    """Solves layers and puts the solutions in place.

    Attributes:
        norms: by layer, the batch norm that absorbs a scale of it.
        frozen: the layers that were solved.

    """

    def __init__(
        self, widths: Mapping[str, int], settings: Settings, observe: Callable[[LayerResult], None]
    ) -> None:
        self._widths, self._settings, self._observe = widths, settings, observe
        self.norms, self.frozen = dict[str, nn.Module](), dict[str, Quantized]()

    def __call__(self, layer: Layer, moments: Moments) -> Tensor | None:
        norm, bits = self.norms.get(layer.name), self._widths[layer.name]
        solution = solve(layer, moments, bits, self._settings, scaled=norm is not None)
        self.frozen[layer.name] = Quantized.of(layer, solution.codebook, solution.codes.cpu())
        with torch.no_grad():
            layer.weight.copy_(self.frozen[layer.name].weight())
        if norm is not None and solution.factor is not None:
            absorb_factor(layer, norm, solution.factor)
        count = len(self.frozen)
        self._observe(
            LayerResult(
                layer.name, bits, solution.nearest, solution.compensated, count, len(self._widths)
            )
        )
        return solution.factor


def float_moments(
    model: nn.Module, inputs: Iterable[Inputs], layers: Iterable[Layer]
) -> dict[str, Moments]:
    """Moments of the layers' inputs, by name, in one pass of the model as it is; memory does not
    grow with the inputs.

    Raises:
        PlanError: the model does not take the inputs, or a layer is reached by none of them.

    """
    by_module = calling_modules(model, layers)
    moments = {layer.name: Moments.of(layer) for some in by_module.values() for layer in some}

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for layer in by_module[module]:
            for problem, columns in layer_inputs(layer, module, args, kwargs):
                moments[layer.name].add(problem, columns)

    hooks = [module.register_forward_pre_hook(see, with_kwargs=True) for module in by_module]
    with hooked(hooks):
        feed(model, inputs)
    for name, one in moments.items():
        _check_reached(name, reached=one.seen > 0)
    return moments


def _freeze_from_float(
    model: nn.Module, layers: Sequence[Layer], inputs: Iterable[Inputs], freeze: Freeze
) -> None:
    """Each layer from full-precision inputs: all moments first, as freezing changes the model."""
    moments = float_moments(model, inputs, layers)
    for layer in layers:
        freeze(layer, moments[layer.name])


def freeze_sequentially(
    model: nn.Module,
    quantized: nn.Module,
    layers: Sequence[Layer],
    inputs: Iterable[Inputs],
    freeze: Freeze,
    *,
    correct: bool,
) -> None:
    """In forward order, but for layers that are used more than once: these have no one place in it,
    and come first.
    """
    batches = [on_device(batch, device_of(model)) for batch in inputs]
    check_given(given=bool(batches))
    by_module = _called_once(quantized, layers, batches[0])
    once = {layer.name for some in by_module.values() for layer in some}
    if others := [layer for layer in layers if layer.name not in once]:
        _freeze_from_float(quantized, others, batches, freeze)
    freeze_in_forward_order(model, quantized, by_module, batches, freeze, correct=correct)


def _called_once(
    model: nn.Module, layers: Iterable[Layer], batch: Inputs
) -> dict[nn.Module, list[Layer]]:
    """The layers, by the module whose call shows their inputs, that have one such call in a forward
    pass.
    """
    by_module = calling_modules(model, layers)
    counts = count_calls(model, by_module, batch)
    shared = {
        layer.name
        for module, some in by_module.items()
        for layer in some
        if layer.tied or counts[module] > 1
    }
    return {
        module: some
        for module, some in by_module.items()
        if not shared & {layer.name for layer in some}
    }


def _check_reached(name: str, *, reached: bool) -> None:
    if not reached:
        raise PlanError(
            f"{name}: no calibration input reaches this layer; leave it out of the plan, or give inputs that do"
        )
