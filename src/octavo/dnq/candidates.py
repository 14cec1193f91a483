"""Candidates: every layer quantized once for each of its actions, and kept for all trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from octavo.activations.quantization import fitted_quantizers
from octavo.activations.quantizer import InputQuantizer
from octavo.dnq.space import Action
from octavo.formats.width import FLOAT, Width
from octavo.network.forward import Inputs, device_of, observing
from octavo.network.layers import Layer, find_layers
from octavo.network.moments import Moments
from octavo.progress import Event, Progress, silent
from octavo.ptq.absorption import absorbing_norms, rescaled
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.layer_rates import rates_of_layers
from octavo.ptq.layer_solver import solve
from octavo.ptq.setting_aside import leading
from octavo.ptq.settings import PtqSettings
from octavo.storage.coding import grouped as coding
from octavo.storage.quantized import Quantized

__all__ = ["Candidate", "Candidates", "quantize_all"]

SOLVING = "calibrating every layer at every width"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One layer, quantized by one of its actions.

    Attributes:
        weight: the quantized weight, in the shape of the layer's own.
        quantized: the codes and the codebook of the weight, on the CPU, as a file has them.
        stored_bits: bits that its codes take at their entropy.
        quantizer: the quantizer of the layer's inputs; None leaves them as they are.
        norm: the batch norm of the model that can cancel a factor of the output channels, if any.
        factor: the factor of each output channel, (channels,), that ``weight`` has and
            ``quantized`` has not; None if there is none.

    """

    weight: Tensor
    quantized: Quantized
    stored_bits: float
    quantizer: InputQuantizer | None = None
    norm: nn.Module | None = None
    factor: Tensor | None = None


Candidates: TypeAlias = Sequence[Sequence[Candidate]]  # by layer and action


def quantize_all(
    model: nn.Module,
    layers: Sequence[str],
    inputs: Sequence[Inputs],
    actions: Sequence[Sequence[Action]],
    settings: PtqSettings,
    *,
    progress: Progress = silent,
) -> list[list[Candidate]]:
    """Quantize every layer for each of its actions, by PTQ from full-precision inputs.

    Args:
        model: the trained network; it is left as it was.
        layers: names of the layers.
        inputs: calibration batches, on the model's device.
        actions: the actions of each layer.
        settings: the settings of PTQ.
        progress: called after each layer.

    """
    progress(Event("survey", 0, len(layers), SOLVING))
    known = {layer.name: layer for layer in find_layers(model)[0]}
    searched = [known[name] for name in layers]
    moments = float_moments(model, inputs, searched)
    norms: Mapping[str, nn.Module] = {}
    if settings.absorb:
        with observing(model):
            norms = absorbing_norms(model, searched, inputs[0])
    quantizers = _input_quantizers(model, inputs, dict(zip(layers, actions, strict=True)))
    rates = _rates(model, list(zip(searched, actions, strict=True)), inputs, settings)
    candidates = []
    for layer, layer_actions in zip(searched, actions, strict=True):
        name = layer.name
        of_widths = {width: replace(settings, rate=rate) for width, rate in rates[name].items()}
        solved = _candidates_of(
            layer,
            moments[name],
            layer_actions,
            quantizers.get(name, {}),
            norms.get(name),
            of_widths,
        )
        candidates.append(solved)
        progress(Event("survey", len(candidates), len(layers), SOLVING))
    return candidates


def _input_quantizers(
    model: nn.Module, inputs: Sequence[Inputs], actions: Mapping[str, Sequence[Action]]
) -> dict[str, dict[int, InputQuantizer]]:
    """Fit a quantizer for each number of bits that the inputs of a layer may get, by layer name."""
    bits_of_layers: dict[str, list[int]] = {}
    for name, layer_actions in actions.items():
        bits = {action.input_bits for action in layer_actions} - {None, FLOAT}
        if bits:
            bits_of_layers[name] = sorted(each for each in bits if each is not None)
    if not bits_of_layers:
        return {}
    device = device_of(model)
    fitted = fitted_quantizers(model, inputs, bits_of_layers)
    return {
        name: {bits: quantizer.to(device) for bits, quantizer in by_bits.items()}
        for name, by_bits in fitted.items()
    }


def _candidates_of(
    layer: Layer,
    moments: Moments,
    actions: Sequence[Action],
    quantizers: Mapping[int, InputQuantizer],
    norm: nn.Module | None,
    settings: Mapping[Width, PtqSettings],
) -> list[Candidate]:
    """Return the candidates of one layer; its weights are solved once for each width."""
    widths = dict.fromkeys(action.width for action in actions)
    solved = {width: _solved(layer, moments, width, norm, settings[width]) for width in widths}
    candidates = []
    for action in actions:
        quantizer = None if action.input_bits is None else quantizers.get(action.input_bits)
        candidates.append(replace(solved[action.width], quantizer=quantizer))
    return candidates


def _rates(
    model: nn.Module,
    searched: Sequence[tuple[Layer, Sequence[Action]]],
    inputs: Sequence[Inputs],
    settings: PtqSettings,
) -> dict[str, dict[Width, float]]:
    """Return the rate of each layer at each of its widths: that of a plan which gives the width to
    all layers that may have it.
    """
    planned: dict[Width, list[tuple[Layer, Width]]] = {}
    for layer, actions in searched:
        for width in dict.fromkeys(action.width for action in actions):
            planned.setdefault(width, []).append((layer, width))
    rates: dict[str, dict[Width, float]] = {layer.name: {} for layer, _ in searched}
    for width, layers in planned.items():
        with observing(model):
            found = rates_of_layers(model, layers, leading(iter(inputs)), settings)
        for name, rate in found.items():
            rates[name][width] = rate
    return rates


def _solved(
    layer: Layer, moments: Moments, width: Width, norm: nn.Module | None, settings: PtqSettings
) -> Candidate:
    """Return the candidate of one width, its inputs as they are."""
    solution = solve(layer, moments, width, settings, scaled=norm is not None)
    quantized = Quantized.of(layer, solution.codebook, solution.codes.cpu())
    # The norm behind the layer stays as it is in trials, so the weight takes the factor.
    effective = rescaled(layer, quantized.weight(), solution.factor)
    weight = torch.empty_like(layer.weight, requires_grad=False).copy_(effective)
    stored_bits = 8 * coding.entropy_bytes(quantized.codes, width)
    return Candidate(weight, quantized, stored_bits, norm=norm, factor=solution.factor)
