"""Low-precision activations: what layers are given, rounded to a few evenly spaced levels whose
steps are calibrated and, if that is wished, learned with the weights (LSQ, arXiv 1902.08153).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from octavo.activations.histogram import Histogram
from octavo.activations.quantizer import (
    LEAST,
    InputForm,
    InputQuantizer,
    attach,
    first_argument,
    input_quantizers,
)
from octavo.errors import PlanError
from octavo.formats.width import check_bits
from octavo.network.calling import Inputs, feed, hooked
from octavo.network.layers import Skipped, find_inputs
from octavo.plan import matching

__all__ = ["ScaleFit", "check_fit", "fitted_quantizers", "quantize_activations"]

ScaleFit: TypeAlias = Literal["mse"] | float

FINEST, TRIED = (
    8,
    16,
)  # steps are tried down to 2^-8 of the one that reaches the largest value, so many an octave


def quantize_activations(
    model: nn.Module,
    inputs: Iterable[Inputs],
    bits: int | Mapping[str, int],
    *,
    fit: ScaleFit = "mse",
    power_of_two: bool = False,
    learned: bool = True,
) -> list[Skipped]:
    """Round what layers are given to ``2^bits`` evenly spaced levels, from now on; the model is
    changed in place.

    It trains on with them, a step's gradient as in LSQ (arXiv 1902.08153). What is never negative
    on the calibration inputs gets no levels below zero. The model's parameters gain a step for each
    layer; make the optimizer afterwards.

    Args:
        model: the trained network.
        inputs: batches that the model is called with, unlabelled; they are gone through once, in
            constant memory.
        bits: 2 to 8, for all inputs that can be quantized, or from layer names and shell patterns
            to bits: the last pattern that matches counts, the others stay in float.
        fit: of the step: ``"mse"``, by squared error, or the percentile of the magnitudes at which
            the highest level lies.
        power_of_two: steps are powers of two, in training too: for integer hardware.
        learned: whether steps train with the weights.

    Returns:
        The layers whose inputs cannot be quantized, with the reason.

    Raises:
        PlanError: an unknown layer, one whose inputs are quantized already or cannot be, bits out
            of range, no inputs, or a layer that none of them reaches; the message names it.

    """
    check_fit(fit)
    modules, skipped = find_inputs(model)
    chosen = _chosen(model, bits, modules, skipped)
    seen = _observe(model, inputs, {name: modules[name] for name in chosen})
    for name, histogram in seen.items():
        form = InputForm(chosen[name], histogram.lowest < 0, power_of_two)
        attach(modules[name], InputQuantizer(form, _fitted(histogram, form, fit), learned=learned))
    return skipped


def fitted_quantizers(
    model: nn.Module, inputs: Iterable[Inputs], bits: Mapping[str, Collection[int]]
) -> dict[str, dict[int, InputQuantizer]]:
    """By layer and bits, the quantizers that ``quantize_activations`` would put there; the model is
    left as it is.

    Raises:
        PlanError: inputs that do not fit, or a layer that none of them reaches.

    """
    seen = _observe(model, inputs, {name: model.get_submodule(name) for name in bits})
    forms = {name: [InputForm(own, seen[name].lowest < 0) for own in bits[name]] for name in bits}
    return {
        name: {
            form.bits: InputQuantizer(form, _fitted(seen[name], form, "mse"), learned=False)
            for form in own
        }
        for name, own in forms.items()
    }


def check_fit(fit: ScaleFit) -> None:
    """Raise PlanError unless ``fit`` is ``"mse"`` or a percentile."""
    number = isinstance(fit, int | float) and not isinstance(fit, bool)
    if fit != "mse" and not (number and 0 < float(fit) <= 100):
        raise PlanError(f'fit: expected "mse" or a percentile above 0 and up to 100, got {fit!r}')


def _chosen(
    model: nn.Module,
    bits: int | Mapping[str, int],
    modules: Mapping[str, nn.Module],
    skipped: Iterable[Skipped],
) -> dict[str, int]:
    """Bits by the names of modules whose inputs shall be quantized."""
    if not modules:
        raise PlanError(
            f"{type(model).__name__}: expected a model with layers whose inputs can be quantized, found none"
        )
    reasons = (
        {}
        if isinstance(bits, int)
        else {skip.name: skip.reason for skip in skipped if skip.name in bits}
    )
    for name, reason in reasons.items():
        raise PlanError(f"{name}: its inputs stay in float: {reason}")
    there = input_quantizers(model)
    chosen = matching(modules, bits, type(model).__name__)
    for name, value in chosen.items():
        check_bits(value, _shown(name))
        if name in there:
            raise PlanError(
                f"{_shown(name)}: its inputs are quantized already; remove_quantizers(model) first"
            )
    return chosen


def _shown(name: str) -> str:
    return name or "the model itself"


def _observe(
    model: nn.Module, inputs: Iterable[Inputs], modules: Mapping[str, nn.Module]
) -> dict[str, Histogram]:
    """What each module is given when the model is called with the inputs."""
    seen, names = (
        {name: Histogram() for name in modules},
        {module: name for name, module in modules.items()},
    )

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = first_argument(args, kwargs)
        if given.numel() and not bool(torch.stack(given.aminmax()).isfinite().all()):
            raise PlanError(
                f"{_shown(names[module])}: expected finite inputs, got some that are NaN or infinite"
            )
        seen[names[module]].add(given)

    with hooked(module.register_forward_pre_hook(count, with_kwargs=True) for module in names):
        feed(model, inputs)
    for name, histogram in seen.items():
        if not histogram.counts.any():
            raise PlanError(
                f"{_shown(name)}: no calibration input reaches it; give it no bits, or give inputs that do"
            )
    return seen


def _fitted(histogram: Histogram, form: InputForm, fit: ScaleFit) -> float:
    """The step for inputs of this distribution."""
    largest = max(histogram.lowest / (form.lowest or -1), histogram.highest / form.highest)
    if largest <= LEAST:  # next to nothing but zeros
        return 1.0
    if fit != "mse":
        return max(histogram.percentile(fit) / form.highest, LEAST)
    octave = 1 if form.power_of_two else TRIED
    top = 2.0 ** math.ceil(math.log2(largest)) if form.power_of_two else largest
    tried = top * torch.exp2(-torch.arange(FINEST * octave + 1, dtype=torch.float64) / octave)
    tried = tried[tried >= LEAST]
    return float(tried[histogram.squared_error(tried, form.lowest, form.highest).argmin()])
