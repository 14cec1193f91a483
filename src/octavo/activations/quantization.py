"""Low-precision activations: layer inputs are rounded to a few evenly spaced levels, whose scale is
calibrated and, if wished, learned with the weights (LSQ, arXiv 1902.08153).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from octavo.activations.histogram import Histogram
from octavo.activations.quantizer import (
    LEAST_SCALE,
    InputFormat,
    InputQuantizer,
    attach_quantizer,
    input_quantizers,
    module_title,
    quantized_already,
)
from octavo.errors import PlanError
from octavo.formats.width import check_bits
from octavo.network.calls import feed
from octavo.network.distributed import check_not_distributed
from octavo.network.forward import Inputs, first_argument, hooked
from octavo.network.layers import Skipped, find_inputs
from octavo.plan import matching

__all__ = [
    "ActivationSettings",
    "ScaleFit",
    "check_fit",
    "fitted_quantizers",
    "quantize_activations",
]

ScaleFit: TypeAlias = Literal["mse"] | float

# The least squared error is searched among scales from the largest that may be needed down to
# 2^-OCTAVES of it, with SCALES_PER_OCTAVE of them in each factor of two.
OCTAVES = 8
SCALES_PER_OCTAVE = 16


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """The one home of the defaults of :func:`quantize_activations`, which says what they mean."""

    fit: ScaleFit = "mse"
    power_of_two: bool = False
    learned: bool = True


def quantize_activations(
    model: nn.Module,
    inputs: Iterable[Inputs],
    bits: int | Mapping[str, int],
    *,
    fit: ScaleFit = ActivationSettings.fit,
    power_of_two: bool = ActivationSettings.power_of_two,
    learned: bool = ActivationSettings.learned,
) -> list[Skipped]:
    """Round the inputs of layers to ``2^bits`` evenly spaced levels from now on; the model is
    changed in place.

    The model can be trained on with its quantizers; the gradient of a scale is that of LSQ (arXiv
    1902.08153). Inputs that are never negative during the calibration get no levels below zero. The
    model gains one parameter, the scale, for each layer; so make the optimizer afterwards.
    ``octavo.remove_quantizers`` undoes all of this.

    Args:
        model: the trained network.
        inputs: unlabelled batches that the model is called with. They are read once, in constant
            memory.
        bits: 2 to 8 for all inputs that can be quantized, or a mapping from layer names and shell
            patterns to bits, as in a ``Plan``; layers that none matches keep their inputs in float.
        fit: the choice of the scale: ``"mse"`` takes the scale of the least squared error; a number
            is the percentile of the magnitudes at which the highest level lies.
        power_of_two: True keeps scales at powers of two, in training too, for integer hardware.
        learned: True lets scales train with the weights.

    Returns:
        The layers whose inputs cannot be quantized, with the reason.

    Raises:
        PlanError: a layer is unknown, has quantized inputs already or cannot have them; bits are
            out of range; there are no inputs; or no input reaches a layer. The message names it.
            Or ``DistributedDataParallel`` wraps the model already.

    """
    check_fit(fit)
    check_not_distributed(model, "quantize_activations(model, ...)")
    modules, skipped = find_inputs(model)
    chosen = _chosen_bits(model, bits, modules, skipped)
    histograms = _input_histograms(model, inputs, {name: modules[name] for name in chosen})
    for name, histogram in histograms.items():
        input_format = InputFormat(chosen[name], histogram.lowest < 0, power_of_two)
        scale = _fitted_scale(histogram, input_format, fit)
        attach_quantizer(modules[name], InputQuantizer(input_format, scale, learned=learned))
    return skipped


def fitted_quantizers(
    model: nn.Module, inputs: Iterable[Inputs], bits: Mapping[str, Collection[int]]
) -> dict[str, dict[int, InputQuantizer]]:
    """Make the quantizers that ``quantize_activations`` would attach, by layer and by bits; the
    model stays as it is.

    Raises:
        PlanError: inputs that do not fit, or a layer that none of them reaches.

    """
    modules = {name: model.get_submodule(name) for name in bits}
    histograms = _input_histograms(model, inputs, modules)
    return {
        name: {width: _fitted_quantizer(histograms[name], width) for width in widths}
        for name, widths in bits.items()
    }


def _fitted_quantizer(histogram: Histogram, bits: int) -> InputQuantizer:
    input_format = InputFormat(bits, histogram.lowest < 0)
    return InputQuantizer(
        input_format, _fitted_scale(histogram, input_format, "mse"), learned=False
    )


def check_fit(fit: ScaleFit) -> None:
    """Raise PlanError unless ``fit`` is ``"mse"`` or a percentile."""
    number = isinstance(fit, int | float) and not isinstance(fit, bool)
    if fit != "mse" and not (number and 0 < float(fit) <= 100):
        raise PlanError(f'fit: expected "mse" or a percentile above 0 and up to 100, got {fit!r}')


def _chosen_bits(
    model: nn.Module,
    bits: int | Mapping[str, int],
    modules: Mapping[str, nn.Module],
    skipped: Iterable[Skipped],
) -> dict[str, int]:
    """Give the modules whose inputs shall be quantized their bits, by name."""
    kind = type(model).__name__
    if not modules:
        raise PlanError(
            f"{kind}: expected a model with layers whose inputs can be quantized, found none"
        )
    if not isinstance(bits, int):
        for layer in skipped:
            if layer.name in bits:
                raise PlanError(f"{layer.name}: its inputs stay in float: {layer.reason}")
    present = input_quantizers(model)
    chosen = matching(modules, bits, f"layer of {kind}")
    for name, value in chosen.items():
        check_bits(value, module_title(name))
        if name in present:
            raise quantized_already(name)
    return chosen


def _input_histograms(
    model: nn.Module, inputs: Iterable[Inputs], modules: Mapping[str, nn.Module]
) -> dict[str, Histogram]:
    """Call the model with the inputs and count the inputs of each module."""
    histograms = {name: Histogram() for name in modules}
    names = {module: name for name, module in modules.items()}

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = first_argument(args, kwargs)
        name = names[module]
        if values.numel() and not bool(torch.stack(values.aminmax()).isfinite().all()):
            raise PlanError(
                f"{module_title(name)}: expected finite inputs, got some that are NaN or infinite"
            )
        histograms[name].add(values)

    with hooked(module.register_forward_pre_hook(count, with_kwargs=True) for module in names):
        feed(model, inputs)
    for name, histogram in histograms.items():
        if not histogram.counts.any():
            raise PlanError(
                f"{module_title(name)}: no calibration input reaches it; "
                "give it no bits, or give inputs that do"
            )
    return histograms


def _fitted_scale(histogram: Histogram, input_format: InputFormat, fit: ScaleFit) -> float:
    """Choose the scale for inputs of this distribution."""
    lowest = input_format.lowest
    highest = input_format.highest
    # The least scale at which no value is clipped; without levels below zero, no value is negative.
    largest = max(histogram.lowest / (lowest or -1), histogram.highest / highest)
    if largest <= LEAST_SCALE:  # next to nothing but zeros
        return 1.0
    if fit != "mse":
        return max(histogram.percentile(fit) / highest, LEAST_SCALE)
    per_octave = SCALES_PER_OCTAVE
    if input_format.power_of_two:
        per_octave = 1
        largest = 2.0 ** math.ceil(math.log2(largest))
    steps = torch.arange(OCTAVES * per_octave + 1, dtype=torch.float64, device="cpu")
    octaves = steps / per_octave
    candidates = largest * torch.exp2(-octaves)
    candidates = candidates[candidates >= LEAST_SCALE]
    return float(candidates[histogram.squared_error(candidates, lowest, highest).argmin()])
