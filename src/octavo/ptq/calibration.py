"""Post-training quantization (PTQ): quantize from a few hundred unlabelled inputs, without labels
and without training. The work is done by ``octavo.ptq.network_solver``.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from octavo._deprecated import renamed_arguments
from octavo.formats.fitting import Fit, Per
from octavo.formats.width import WidthLike
from octavo.network.forward import Inputs, batches_of
from octavo.plan import Budget
from octavo.progress import Event, Progress, ProgressLike, showing, silent
from octavo.ptq.file_budget import within
from octavo.ptq.file_form import FileForm
from octavo.ptq.freezer import LayerResult
from octavo.ptq.measuring import warn_if_large
from octavo.ptq.network_solver import rate_factors, solve_network
from octavo.ptq.settings import PtqOrder, PtqSettings
from octavo.storage.layer_strings import Coding
from octavo.storage.packed import FloatForm, Packed

__all__ = ["Calibrated", "calibrate", "calibrated"]


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
            not on the levels of a codebook already.
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

    @functools.cache
    def factors() -> dict[str, float]:
        return rate_factors(model, plan, inputs, settings)

    def solve(rate: float) -> Calibrated:
        layers: list[LayerResult] = []
        at_rate = replace(settings, rate=rate, budget=None)
        reused = factors() if budget is not None and rate else None
        solved = solve_network(model, plan, inputs, at_rate, _keeping(layers, progress), reused)
        packed = solved.checked(explained=True)
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
