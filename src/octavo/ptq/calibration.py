"""Post-training quantization (PTQ): quantize from a few hundred unlabelled inputs, without labels
and without training.

Layers freeze in forward order. Each is fitted to the outputs that it had in full precision, from
the inputs that it has now that the layers ahead of it are quantized. The full-precision and the
quantized network run side by side and stop at each layer, so that all of it costs two forward
passes and the linear algebra.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from octavo._deprecated import renamed_arguments
from octavo.formats.fitting import Fit, Per
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
from octavo.plan import Budget, planned_layers
from octavo.progress import Event, Progress, ProgressLike, showing, silent
from octavo.ptq.absorption import absorbing_norms
from octavo.ptq.file_budget import within
from octavo.ptq.file_form import FileForm
from octavo.ptq.float_inputs import freeze_from_float
from octavo.ptq.freezer import Freezer, Frozen, LayerResult
from octavo.ptq.measuring import Measured, divergence_of, explain, measure, warn_if_large
from octavo.ptq.sensitivity import rates_of_layers
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.setting_aside import deal, handed_over, is_divisible, leading
from octavo.ptq.settings import PtqOrder, PtqSettings
from octavo.storage.layer_strings import Coding
from octavo.storage.packed import FloatForm, Packed, check_state, pack
from octavo.storage.quantized import Quantized

__all__ = ["Calibrated", "calibrate", "calibrate_quietly", "calibrated"]

# Relative error of a recurrent layer's outputs beyond which a classifier of sequences had lost more
# than two points of accuracy.
LOST_STATES = 0.3


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
    rate: float = PtqSettings.rate,
    masks: Mapping[str, Tensor] | None = None,
    budget: Budget | None = None,
    floats: FloatForm | None = None,
    coding: Coding = FileForm.coding,
    progress: ProgressLike = None,
) -> Packed:
    """Quantize ``model`` by PTQ; the model is left as it was.

    One sample in eight, and no more than 64, is set aside: no layer is solved from these. The
    network that results is measured on them, see ``Packed.held_out``, and it is not worse there
    than the one in which every weight takes its nearest level. With fewer than 64 samples nothing
    is set aside.

    Warns:
        UserWarning: the network is far from full precision; the message names the layers that cost
            most, and a plan that would repair it.

    Args:
        model: the trained network.
        plan: layer name to bits, or to another width such as ``"fp4"``: a ``Plan`` or a dict.
            Layers that it does not name stay in float.
        inputs: batches that the model is called with, unlabelled: tensors, or tuples or dicts of
            arguments.
        order: the order in which weights freeze. ``"gptq"`` has one order for all rows of a layer.
            ``"distance"`` freezes the cheapest weight of each row first (OBQ; DNQ's criterion,
            weighted by the inputs), ``"magnitude"`` the largest (INQ's criterion).
        fit: the choice of the largest exponent: ``"max"`` is INQ's formula, ``"mse"`` takes the
            exponent of least squared error of the layer's outputs.
        per: one largest exponent for each output ``"channel"``, one for the whole ``"tensor"``, or
            one for every 32 inputs of a channel, ``("group", 32)``.
        damp: share of the mean diagonal of the inputs' second moment that is added to its diagonal.
        sequential: each layer sees the inputs that the quantized layers ahead of it produce; if
            false, every layer sees full-precision inputs. The first gives better networks, and
            keeps what all inputs have become at one layer, up to 512 MiB in memory and the rest in
            temporary files; the second streams them.
        absorb: give each channel ahead of a batch norm a scale of its own, which the batch norm
            cancels by its running statistics. This is far better where channels have few weights,
            as in depthwise convolutions. ``per`` must not be ``"tensor"``.
        rate: how much a smaller file is worth: a bit less in each weight may cost so many times the
            error that the layer has without it. 0 counts the error alone; 1 or 2 takes a fifth
            off a file of 4 bits, and finer widths have use for more. The bits are those of an
            entropy coder; layers whose error does more to the outputs keep more of them.
        masks: layer name to mask, false where a weight is pruned; ``{}`` if none is. Pruned weights
            are zero in the result, and the others make up for them. None, the default, takes the
            zeros of a layer for pruned weights if they are a thousandth of it or more, and it is
            not on powers of two already.
        budget: a limit on the file, ``bytes`` or ``ratio``: the least rate is found at which the
            file meets it. That solves the network some four to eight times.
        floats: the form of all other tensors, see ``Packed.with_floats``. None, the default, is
            ``"float32"``, which changes nothing; with a rate or a budget it is ``"folded"``, unless
            that changes outputs by more than a divergence of 1e-4.
        coding: the coding of the file: see ``Packed``.
        progress: True shows how far it is. A function is called after each layer with an ``Event``
            of the phase ``"calibrate"``, whose detail is a ``LayerResult``.

    Raises:
        BudgetError: a budget that is not one of the file, or that no rate meets; the message has
            the least bytes.
        PlanError: an unknown layer, no inputs, inputs that the model does not take or that are not
            finite, or layers that no input reaches; the message names them.

    """
    settings = PtqSettings(
        order=order,
        fit=fit,
        per=per,
        damp=damp,
        sequential=sequential,
        absorb=absorb,
        rate=rate,
        budget=budget,
        masks=masks,
    )
    form = FileForm.asked(floats, coding, rate=rate, budget=budget)
    with showing(progress) as callback:
        found = calibrated(model, plan, inputs, settings, form, callback)
    return found.as_filed


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A calibrated network.

    Attributes:
        packed: the network as it was solved.
        as_filed: the same in the form of its file.
        rate: the rate that it was solved at.
        layers: the outcome of each layer.

    """

    packed: Packed
    as_filed: Packed
    rate: float
    layers: tuple[LayerResult, ...]

    @property
    def file_bytes(self) -> int:
        """The bytes of its file."""
        return self.as_filed.file_bytes

    @property
    def float_bytes(self) -> int:
        """The bytes of its tensors in float, as ``Packed.float_bytes``."""
        return self.as_filed.float_bytes


def calibrated(
    model: nn.Module,
    plan: Mapping[str, WidthLike],
    inputs: Iterable[Inputs],
    settings: PtqSettings,
    form: FileForm,
    progress: Progress = silent,
) -> Calibrated:
    """Do what ``calibrate`` does, and return all that is known of the network.

    Args:
        model: the trained network.
        plan: the width of each layer.
        inputs: calibration inputs.
        settings: the settings of PTQ.
        form: the form of the file, which the budget of the settings is about.
        progress: called after each layer.

    """
    budget = settings.budget
    if budget is not None or form.floats is None:  # they are read more than once
        inputs = list(batches_of(inputs))

    def solve(rate: float) -> Calibrated:
        layers: list[LayerResult] = []
        at_rate = replace(settings, rate=rate, budget=None)
        packed = calibrate_quietly(
            model, plan, inputs, at_rate, _keeping(layers, progress), explained=True
        )
        return Calibrated(packed, form.of(packed, model, inputs), rate, tuple(layers))

    found = solve(settings.rate) if budget is None else within(budget, solve)
    if found.packed.held_out is not None:
        warn_if_large(found.packed.held_out, found.packed.plan)
    return found


def _keeping(layers: list[LayerResult], progress: Progress) -> Progress:
    """Return the callback that also adds the outcome of each layer to a list."""

    def keep(event: Event) -> None:
        if isinstance(event.detail, LayerResult):
            layers.append(event.detail)
        progress(event)

    return keep


def calibrate_quietly(
    model: nn.Module,
    plan: Mapping[str, WidthLike],
    inputs: Iterable[Inputs],
    settings: PtqSettings,
    progress: Progress = silent,
    *,
    explained: bool = False,
) -> Packed:
    """Do what ``calibrate`` does, without its warning.

    Args:
        model: the trained network.
        plan: the width of each layer.
        inputs: calibration inputs.
        settings: the settings of PTQ.
        progress: called after each layer.
        explained: find the layers that cost most if the network has failed.

    """
    check_state(model)
    planned_layers(model, plan)  # checks the plan before anything is copied or read
    check_range(model)
    warn_if_mostly_float(model)
    batches = iter(batches_of(inputs))
    first = list(itertools.islice(batches, 1)) if not settings.rate else leading(batches)
    first = [on_device(batch, device_of(model)) for batch in first]
    quantized = faithful_copy(model, *first[:1])
    planned = planned_layers(quantized, plan)
    layers = [layer for layer, _ in planned]
    pruned = None if settings.masks is None else find_pruned(layers, settings.masks)
    set_to_zero(layers, pruned or {})
    with observing(quantized), naming_errors(quantized, model):
        by_sample = bool(first) and is_divisible(quantized, first[0])
        norms = absorbing_norms(quantized, layers, first[0]) if settings.absorb and first else {}
        rates = rates_of_layers(quantized, planned, first, settings)
        dealt = _Dealt(itertools.chain(handed_over(first), batches), by_sample=by_sample)
        widths = {layer.name: bits for layer, bits in planned}
        freeze = Freezer(widths, settings, norms, pruned, progress, rates)
        frozen = _freeze(model, quantized, layers, dealt, freeze)
    check_reached([layer.name for layer in layers if layer.name not in frozen])
    solved = _Solved(quantized, planned, frozen, norms)
    with observing(quantized):
        return _checked(model, solved, dealt, explained=explained)


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
                self.held_out.append(held_out)
            if solving is not None:
                yield solving

    @property
    def samples(self) -> int:
        """The number of samples that were set aside, or of batches that cannot be divided."""
        if not self._by_sample:
            return len(self.held_out)
        return sum(sample_count(batch) or 0 for batch in self.held_out)


@dataclass(frozen=True, eq=False)
class _Solved:
    """A quantized network, and all that is known of its layers."""

    network: nn.Module
    planned: list[tuple[Layer, Width]]
    frozen: Mapping[str, Frozen]
    norms: Mapping[str, nn.Module]

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


def _checked(model: nn.Module, solved: _Solved, dealt: _Dealt, *, explained: bool) -> Packed:
    """Pack a network after a check on the held-out inputs: end to end, it must not be worse than
    the one in which all weights take their nearest levels. If it is, that one is the result.
    """
    device = device_of(model)
    aside = [on_device(batch, device) for batch in dealt.held_out]
    packed = solved.packed()
    held_out, divergence = measure(model, solved.network, aside, dealt.samples)
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
