"""PTQ of a network: all layers of a plan, solved in forward order.

Each layer is fitted to the outputs that it had in full precision, from the inputs that it has now
that the layers ahead of it are quantized. The full-precision and the quantized network run side by
side and stop at each layer, so that all of it costs two forward passes and the linear algebra.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

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
from octavo.network.pruned import find_pruned, set_to_zero
from octavo.network.reach import batches_for, check_reached, unreached
from octavo.network.samples import sample_count
from octavo.network.values import check_range
from octavo.plan import planned_layers
from octavo.progress import Progress, silent
from octavo.ptq.absorption import absorbing_norms
from octavo.ptq.float_inputs import freeze_from_float
from octavo.ptq.freezer import Freezer, Frozen
from octavo.ptq.layer_rates import factors_of_layers
from octavo.ptq.measuring import Measured, divergence_of, explain, measure
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.setting_aside import deal, handed_over, is_divisible, leading, put_aside
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import Packed, check_state, pack
from octavo.storage.quantized import Quantized

__all__ = ["SolvedNetwork", "calibrate_quietly", "rate_factors", "solve_network"]

# Relative error of a recurrent layer's outputs beyond which a classifier of sequences had lost more
# than two points of accuracy.
LOST_STATES = 0.3


def calibrate_quietly(
    model: nn.Module,
    plan: Mapping[str, WidthLike],
    inputs: Iterable[Inputs],
    settings: PtqSettings,
    progress: Progress = silent,
) -> Packed:
    """Do what ``calibrate`` does, without its warning and without a budget.

    Args:
        model: the trained network.
        plan: the width of each layer.
        inputs: calibration inputs.
        settings: the settings of PTQ.
        progress: called after each layer.

    """
    return solve_network(model, plan, inputs, settings, progress).checked()


def solve_network(
    model: nn.Module,
    plan: Mapping[str, WidthLike],
    inputs: Iterable[Inputs],
    settings: PtqSettings,
    progress: Progress = silent,
    factors: Mapping[str, float] | None = None,
) -> "SolvedNetwork":
    """Solve all layers of a plan.

    Args:
        model: the trained network; it is left as it was.
        plan: the width of each layer.
        inputs: calibration inputs.
        settings: the settings of PTQ.
        progress: called after each layer.
        factors: the :func:`rate_factors` of the layers; None: they are measured.

    """
    check_state(model)
    planned_layers(model, plan)  # checks the plan before anything is copied or read
    check_range(model)
    warn_if_mostly_float(model)
    batches = iter(batches_of(inputs))
    first = list(itertools.islice(batches, 1)) if not settings.rate else leading(batches)
    first = [on_device(batch, device_of(model)) for batch in first]
    quantized, planned, pruned = _copied(model, plan, first, settings)
    layers = [layer for layer, _ in planned]
    with observing(quantized), naming_errors(quantized, model):
        by_sample = bool(first) and is_divisible(quantized, first[0])
        norms = absorbing_norms(quantized, layers, first[0]) if settings.absorb and first else {}
        if settings.rate and factors is None:
            factors = factors_of_layers(quantized, planned, first, settings)
        rates = {name: settings.rate * factor for name, factor in (factors or {}).items()}
        dealt = _Dealt(itertools.chain(handed_over(first), batches), by_sample=by_sample)
        widths = {layer.name: bits for layer, bits in planned}
        freeze = Freezer(widths, settings, norms, pruned, progress, rates)
        frozen = _freeze(model, quantized, layers, dealt, freeze)
    check_reached([layer.name for layer in layers if layer.name not in frozen])
    return SolvedNetwork(model, quantized, planned, frozen, norms, dealt)


def rate_factors(
    model: nn.Module,
    plan: Mapping[str, WidthLike],
    inputs: Iterable[Inputs],
    settings: PtqSettings,
) -> dict[str, float]:
    """Return the rates of layers as shares of the network's, by name: see
    ``octavo.ptq.layer_rates``. They are the same at every rate.
    """
    first = [on_device(batch, device_of(model)) for batch in leading(iter(inputs))]
    network, planned, _ = _copied(model, plan, first, settings)
    with observing(network), naming_errors(network, model):
        return factors_of_layers(network, planned, first, settings)


def _copied(
    model: nn.Module, plan: Mapping[str, WidthLike], first: list[Inputs], settings: PtqSettings
) -> tuple[nn.Module, list[tuple[Layer, Width]], dict[str, Tensor] | None]:
    """Return a copy of the model, its planned layers, and their masks of pruned weights if the
    settings give any. What is pruned is zero in the copy.
    """
    quantized = faithful_copy(model, *first[:1])
    planned = planned_layers(quantized, plan)
    layers = [layer for layer, _ in planned]
    pruned = None if settings.masks is None else find_pruned(layers, settings.masks)
    set_to_zero(layers, pruned or {})
    return quantized, planned, pruned


def _freeze(
    model: nn.Module, quantized: nn.Module, layers: list[Layer], dealt: "_Dealt", freeze: Freezer
) -> dict[str, Frozen]:
    """Freeze all layers of the quantized network that inputs reach, by name."""
    if not freeze.settings.sequential:
        # What is set aside is complete once everything else was read.
        return freeze_from_float(quantized, layers, dealt.solving(), freeze, dealt.held_out)
    batches = list(dealt.solving())
    batches += batches_for(quantized, layers, batches, dealt.held_out)
    check_reached(unreached(quantized, layers, batches))  # before the first layer is solved
    full = copied(model)
    with observing(full), naming_errors(full):
        return freeze_sequentially(full, quantized, layers, batches, freeze, dealt.held_out)


class _Dealt:
    """Calibration inputs, of which a part is set aside while they come.

    Attributes:
        held_out: what was set aside so far.

    """

    def __init__(self, batches: Iterable[Inputs], *, by_sample: bool) -> None:
        self.held_out: list[Inputs] = []
        self._batches = batches
        self._by_sample = by_sample

    def solving(self) -> Iterator[Inputs]:
        """Yield the inputs that layers are solved from, once."""
        for solving, held_out in deal(self._batches, by_sample=self._by_sample):
            if held_out is not None:
                parts = (solving, held_out) if self._by_sample else ()
                most = sum(sample_count(part) or 0 for part in parts if part is not None)
                put_aside(held_out, self.held_out, most)  # no batch is larger than the caller's
            if solving is not None:
                yield solving

    @property
    def samples(self) -> int:
        """The number of samples that were set aside, or of batches that cannot be divided."""
        if not self._by_sample:
            return len(self.held_out)
        return sum(sample_count(batch) or 0 for batch in self.held_out)


@dataclass(frozen=True, eq=False)
class SolvedNetwork:
    """A quantized network, and all that is known of its layers.

    Attributes:
        model: the network in full precision.
        network: the quantized network.
        planned: its layers and their widths.
        frozen: the outcome of each layer, by name.
        norms: the batch norms that cancel the scales of layers, by the layer's name.
        dealt: the inputs, of which a part was set aside.

    """

    model: nn.Module
    network: nn.Module
    planned: list[tuple[Layer, Width]]
    frozen: Mapping[str, Frozen]
    norms: Mapping[str, nn.Module]
    dealt: _Dealt

    def checked(self, *, explained: bool = False) -> Packed:
        """Pack the network after a check on the held-out inputs: end to end, it must not be worse
        than the one in which all weights take their nearest levels. If it is, that one is the
        result.

        Args:
            explained: find the layers that cost most if the network has failed.

        """
        with observing(self.network):
            return _checked(self, explained=explained)

    def packed(self) -> Packed:
        """Pack the network as it was solved."""
        names = [layer.name for layer, _ in self.planned]
        return pack(self.network, {name: self.frozen[name].quantized for name in names})

    def packed_nearest(self) -> Packed:
        """Pack the network when it has its nearest levels."""
        return pack(self.network, self.rounding)

    @property
    def lost_states(self) -> tuple[tuple[str, float], ...]:
        """The recurrent layers whose outputs are far off, with their relative errors."""
        errors = {
            layer.name: self.frozen[layer.name].measured
            for layer, _ in self.planned
            if layer.form == "recurrent"
        }
        return tuple(
            (name, error)
            for name, error in errors.items()
            if error is not None and error > LOST_STATES
        )

    @property
    def rounding(self) -> dict[str, Quantized]:
        """The nearest levels of each layer."""
        return {layer.name: self.frozen[layer.name].rounding for layer, _ in self.planned}


def _checked(solved: SolvedNetwork, *, explained: bool) -> Packed:
    model = solved.model
    aside = [on_device(batch, device_of(model)) for batch in solved.dealt.held_out]
    packed = solved.packed()
    held_out, divergence = measure(model, solved.network, aside, solved.dealt.samples)
    if divergence is None or held_out.divergence is None:
        return replace(packed, held_out=replace(held_out, lost_states=solved.lost_states))
    names = {module: name for name, module in solved.network.named_modules()}
    norms = {layer: names[norm] for layer, norm in solved.norms.items()}
    measured = Measured(solved.network, model.state_dict(), norms)
    measured.with_nearest(solved.rounding)
    nearest = divergence_of(solved.network, divergence)
    if nearest < held_out.divergence:
        packed = solved.packed_nearest()
        held_out = replace(held_out, divergence=nearest)
    else:
        packed.apply(solved.network)
    held_out = replace(held_out, nearest=nearest)
    if explained and held_out.is_large:
        held_out = explain(held_out, divergence, measured, solved.planned)
    return replace(packed, held_out=held_out)
