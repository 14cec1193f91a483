"""Measure a quantized network on held-out inputs, and find the layers that cost most."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.formats.fitting import Per
from octavo.formats.registry import fitted_codebook
from octavo.formats.width import Width
from octavo.network.conduct import conduct_of
from octavo.network.divergence import Divergence
from octavo.network.forward import Inputs, observing
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.plan import Plan
from octavo.storage.held_out import HeldOut
from octavo.storage.quantized import Quantized

__all__ = ["Measured", "divergence_of", "explain", "measure", "nearest_levels", "warn_if_large"]

# Finer widths for the layers that cost most: powers of two become no finer beyond 5 bits.
FINER = (Width(5), Width(6, "apot"), Width(8, "apot"))
NAMED = 3  # layers that the warning names


@dataclass(frozen=True, eq=False)
class Measured:
    """A quantized network, and the tensors of the model in full precision that it replaces.

    Attributes:
        network: the quantized network, in evaluation mode.
        original: the state dict of the model in full precision; it is not copied.
        norms: the name of the batch norm that cancels a layer's scale, by the layer's name.

    """

    network: nn.Module
    original: Mapping[str, Tensor]
    norms: Mapping[str, str]

    def with_nearest(self, rounding: Mapping[str, Quantized]) -> None:
        """Give every layer its nearest levels, and everything else its values of full precision."""
        values = dict(self.original)
        for quantized in rounding.values():
            values |= dict.fromkeys(quantized.names, quantized.weight())
        self._write(values)

    def put(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        """Give a layer another weight, and its bias and its batch norm their values of full
        precision; return what was there before, by name.
        """
        prefix = layer.parameter.rpartition(".")[0]
        names = [f"{prefix}.bias".lstrip("."), *self._norm_names(layer)]
        values = {name: self.original[name] for name in names if name in self.original}
        values[layer.parameter] = weight
        state = self.network.state_dict()
        before = {name: state[name].clone() for name in values}
        self._write(values)
        return before

    def put_back(self, before: Mapping[str, Tensor]) -> None:
        """Undo :meth:`put`."""
        self._write(before)

    def _norm_names(self, layer: Layer) -> list[str]:
        norm = self.norms.get(layer.name)
        return [] if norm is None else [n for n in self.original if n.startswith(f"{norm}.")]

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        state = self.network.state_dict()
        for name, value in values.items():
            state[name].copy_(value)


def measure(
    model: nn.Module, network: nn.Module, batches: Sequence[Inputs], samples: int
) -> tuple[HeldOut, Divergence | None]:
    """Measure a quantized network on inputs that were set aside.

    Returns:
        The measurement, and the divergence from full precision to measure other networks by; None
        if there are no inputs or the outputs cannot be compared.

    """
    if not batches:
        return HeldOut(), None
    try:
        with observing(model):
            conduct = conduct_of(model, batches)
        if not conduct.repeats:  # then even full precision is far from itself
            return HeldOut(samples), None
        divergence = Divergence(model, batches, conduct, temperature=1.0)
        of_network = divergence_of(network, divergence)
    except PlanError:  # the model returns nothing to compare
        return HeldOut(samples), None
    return HeldOut(samples, of_network, constant=divergence.of_constant), divergence


def divergence_of(network: nn.Module, divergence: Divergence) -> float:
    """Return the divergence of a network; infinite where its outputs are not finite."""
    value = -divergence.of(network)
    return value if math.isfinite(value) else math.inf


def explain(
    held_out: HeldOut,
    divergence: Divergence,
    measured: Measured,
    layers: Sequence[tuple[Layer, Width]],
) -> HeldOut:
    """Find the layers that cost most, and a plan that would repair a network that has failed.

    Each layer is put back into full precision by itself, and the divergence is measured. Then the
    worst layers together get the nearest levels of a finer width, as many of them as it takes.

    Args:
        held_out: the measurement, whose divergence is large.
        divergence: measures networks on the held-out inputs.
        measured: the quantized network; it is left as it was.
        layers: the layers of the network, with their widths.

    """
    in_float: dict[str, float] = {}
    for layer, _ in layers:
        before = measured.put(layer, measured.original[layer.parameter])
        in_float[layer.name] = divergence_of(measured.network, divergence)
        measured.put_back(before)
    ranked = sorted(layers, key=lambda pair: in_float[pair[0].name])
    costly = tuple((layer.name, in_float[layer.name]) for layer, _ in ranked[:NAMED])
    plan = _repaired(held_out, divergence, measured, ranked)
    return replace(held_out, costly=costly, repair=plan)


def _repaired(
    held_out: HeldOut,
    divergence: Divergence,
    measured: Measured,
    ranked: Sequence[tuple[Layer, Width]],
) -> Plan | None:
    """Return a plan in which as many of the worst layers have a finer width as it takes to be near
    full precision; if no width suffices, as many are left in float as it takes. None if all are.
    """
    for finer in (*FINER, None):
        widths = {layer.name: width for layer, width in ranked}
        changed: list[dict[str, Tensor]] = []
        is_near = False
        for layer, width in ranked:
            if is_near or (finer is not None and not width < finer):
                continue
            changed.append(measured.put(layer, _nearest(layer, measured, finer)))
            if finer is None:
                del widths[layer.name]
            else:
                widths[layer.name] = finer
            is_near = not held_out.is_too_far(divergence_of(measured.network, divergence))
        for before in reversed(changed):
            measured.put_back(before)
        if is_near:
            return Plan(widths) if widths else None
    return None


def _nearest(layer: Layer, measured: Measured, width: Width | None) -> Tensor:
    """Return the nearest levels of a layer's weight in full precision; None: the weight itself."""
    weight = measured.original[layer.parameter]
    return weight if width is None else nearest_levels(layer, weight, width, "channel")


def nearest_levels(layer: Layer, weight: Tensor, width: Width, per: Per) -> Tensor:
    """Return a layer's weight with every number at its nearest level of a width."""
    rows = channels_first(weight.detach().float(), layer.groups)
    codebook = fitted_codebook(rows, width, fit="mse", per=per, name=layer.name)
    return channels_back(codebook.decode(codebook.encode(rows)), layer.groups)


def warn_if_large(held_out: HeldOut, plan: Mapping[str, Width]) -> None:
    """Warn if the divergence is large, and say what to do about it."""
    if held_out.lost_states:
        named = ", ".join(f"{name} ({error:.0%} off)" for name, error in held_out.lost_states)
        _warn(
            "calibrate: errors feed back in recurrent layers, and the outputs of these are far "
            f"from full precision: {named}. Give them more bits, or retrain with Incremental; with "
            "64 inputs or more calibrate measures the whole network"
        )
    if not held_out.is_large or held_out.divergence is None:
        return
    named = ", ".join(f"{name} ({value:.3g} with it in float)" for name, value in held_out.costly)
    unit = f"{held_out.divergence:.3g} on {held_out.samples} held-out samples"
    if held_out.lost is not None:
        unit += f", {min(held_out.lost, 1):.0%} of what its outputs say about its inputs"
    _warn(
        f"calibrate: the quantized network is far from full precision: divergence {unit}. "
        f"The layers that cost most: {named}. {_advice(held_out.repair, plan)}"
    )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=6)  # the line that calls calibrate


def _advice(repair: Plan | None, plan: Mapping[str, Width]) -> str:
    if repair is None:
        return "No plan of this model repairs it: retrain with Incremental"
    more = {name: str(width) for name, width in repair.items() if width != plan[name]}
    left = [name for name in plan if name not in repair]
    words = [f"{name} the width {bits}" for name, bits in more.items()]
    words += [f"{name} in float" for name in left]
    shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
    return (
        f"A plan that would repair it gives {shown} (in the result: held_out.repair); or retrain "
        "with Incremental"
    )
