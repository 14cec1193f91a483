"""The whole way in one call: a search for bits, then PTQ, or INQ over the user's training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octavo._deprecated import renamed_arguments
from octavo.activations.quantization import quantize_activations
from octavo.dnq.finalists import RetrainSteps, file_limit
from octavo.dnq.fitting import FileFit
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.dnq.space import Choice
from octavo.errors import PlanError
from octavo.formats.fitting import Fit, Per
from octavo.formats.width import WidthLike
from octavo.inq.incremental import Incremental, freeze_and_retrain
from octavo.inq.partition import FreezeOrder
from octavo.network.copies import copied
from octavo.network.forward import Inputs, batches_of
from octavo.network.warned import warning_once
from octavo.plan import Budget, Plan
from octavo.progress import ProgressLike, showing
from octavo.pruning.masks import find_kept
from octavo.ptq.calibration import Calibrated, calibrated
from octavo.ptq.file_form import FileForm
from octavo.ptq.settings import PtqOrder, PtqSettings
from octavo.storage.layer_strings import Coding
from octavo.storage.packed import FloatForm, Packed

__all__ = ["compress"]

# The options by the function that receives them. One that is left out has that function's default.
SEARCH = (
    "budget", "options", "method", "trials", "refine", "objective", "seed", "journal", "workers",
    "pins", "activations", "retrain_steps", "absorb", "rate", "floats", "coding", "progress",
)  # fmt: skip
START = ("fit", "per", "damp", "absorb", "rate", "masks")  # calibrate ahead of INQ
PTQ = (*START, "order", "sequential")  # calibrate alone
INQ = ("portions", "order", "fit", "per", "seed", "straight_through", "rate", "masks")


@renamed_arguments(score="objective", observe="progress", correct="")
@warning_once()
def compress(
    model: nn.Module,
    inputs: Iterable[Inputs],
    *,
    budget: Budget,
    retrain: Callable[[nn.Module], object] | None = None,
    options: Sequence[WidthLike] | None = None,
    method: str | None = None,
    trials: int | None = None,
    refine: float | None = None,
    objective: Callable[[nn.Module], float] | None = None,
    seed: int | None = None,
    journal: str | Path | None = None,
    workers: int | None = None,
    pins: Mapping[str, WidthLike] | None = None,
    activations: Sequence[int] | None = None,
    retrain_steps: RetrainSteps | None = None,
    order: PtqOrder | FreezeOrder | Sequence[FreezeOrder] | None = None,
    fit: Fit | None = None,
    per: Per | None = None,
    damp: float | None = None,
    absorb: bool | None = None,
    sequential: bool | None = None,
    rate: float | None = None,
    floats: FloatForm | None = None,
    coding: Coding | None = None,
    portions: tuple[float, ...] | None = None,
    straight_through: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    progress: ProgressLike = None,
) -> Packed:
    """Quantize ``model`` within ``budget``: search for the bits of each layer, then freeze all
    weights.

    Without ``retrain``, ``calibrate`` freezes them (PTQ). With it, ``Incremental`` freezes them
    portion by portion (INQ), starting from the network that ``calibrate`` returned. ``model`` is
    not changed. An option that is left out has the default of the function that receives it.

    A budget of ``bytes`` or ``ratio`` holds for the file that is returned, whatever the options of
    ``calibrate``. With ``retrain`` it holds for the file of the calibration that retraining starts
    from: retraining moves weights, and the file of its end may be some per cent larger or smaller.

    Args:
        model: the trained network.
        inputs: unlabelled batches that the model is called with, as for ``calibrate``.
        budget: the limit on the packed file (``bytes``, ``ratio``) or on the cost of the plan.
        retrain: trains the network that it is given, a copy of ``model``, for a while. It is called
            after each portion but the last.
        options: as all options up to ``retrain_steps``, see ``search``.
        method: the method of the search.
        trials: how many plans may be scored.
        refine: the last share of the trials, which goes to refinement.
        objective: the objective of the search.
        seed: for ``search``, and for ``Incremental`` with ``retrain``.
        journal: the file to which the search appends its trials.
        workers: how many plans are scored at a time.
        pins: the layers whose bits are given.
        activations: the bits that layer inputs may get.
        retrain_steps: trains a network for a few steps; the search compares its finalists after
            that.
        order: which weights freeze first. Without ``retrain`` see ``calibrate``, else
            ``Incremental``.
        fit: how the largest exponent is chosen, for ``calibrate`` and ``Incremental``.
        per: what shares one largest exponent, for ``calibrate`` and ``Incremental``.
        damp: for ``calibrate``.
        absorb: for ``search`` and ``calibrate``.
        sequential: for ``calibrate``, without ``retrain`` only.
        rate: how much a smaller file is worth, for ``search``, ``calibrate`` and ``Incremental``.
        floats: the form of all other tensors in the file. Left out: with a rate, or a budget of
            ``bytes`` or ``ratio``, it is ``"folded"``, unless that changes outputs by more than a
            divergence of 1e-4; else ``"float32"``.
        coding: the coding of the file: see ``Packed``.
        portions: for ``Incremental``, with ``retrain`` only.
        straight_through: for ``Incremental``, with ``retrain`` only.
        masks: for ``calibrate`` and ``Incremental``. Left out: the zeros of ``model`` stay zero.
        progress: True shows how far it is. A function is called with each event of ``search`` and
            ``calibrate``.

    Raises:
        PlanError: an option that has no effect with, or without, ``retrain``; or as ``search``,
            ``calibrate`` and ``Incremental``.
        BudgetError: no plan can meet the budget; the message has the feasible range.

    """
    arguments = {name: value for name, value in locals().items() if value is not None}
    _check_effect(arguments)
    return _compressed(model, list(batches_of(inputs)), arguments)


def _compressed(model: nn.Module, batches: list[Inputs], arguments: dict[str, Any]) -> Packed:
    """Search, calibrate and retrain with the arguments of ``compress`` that were given."""
    retrain = arguments.get("retrain")
    form = _form(arguments)
    priced = {} if form.floats else {"floats": "folded"}  # the plan is for a file of these
    result = search(model, batches, **_picked(arguments | priced, SEARCH))
    if result.plan.activations:
        model = copied(model)
        quantize_activations(model, batches, result.plan.activations)
    settings = PtqSettings(**_picked(arguments, PTQ if retrain is None else START))

    def solve(plan: Plan) -> Calibrated:
        with showing(arguments.get("progress")) as callback:
            return calibrated(model, plan, batches, settings, form, callback)

    solved = _fitted(result, solve)
    if retrain is None:
        return solved.as_filed
    network = copied(model)
    return form.of(_retrained(network, solved, retrain, arguments), network, batches)


def _form(arguments: Mapping[str, Any]) -> FileForm:
    """Return the form of the file that the arguments ask for."""
    return FileForm.asked(
        arguments.get("floats"),
        arguments.get("coding"),
        rate=arguments.get("rate", PtqSettings.rate),
        budget=arguments["budget"],
    )


def _fitted(result: SearchResult, solve: Callable[[Plan], Calibrated]) -> Calibrated:
    """Return the network of a search's plan. If the options of ``calibrate`` make its file too
    large for the budget, the plan is changed until the file fits.
    """
    first = solve(result.plan)
    most = file_limit(result.space.budget, first.float_bytes)
    if most is None or first.file_bytes <= most or result.losses is None:
        return first

    start = result.finalists[0].choice  # that of the plan
    solved = {start: first}

    def file_bytes(choice: Choice) -> int:
        if choice not in solved:
            solved[choice] = solve(result.space.plan(choice))
        return solved[choice].file_bytes

    fit = FileFit(result.space, result.losses, file_bytes, most)
    return solved[fit(start)]


def _retrained(
    network: nn.Module,
    solved: Calibrated,
    retrain: Callable[[nn.Module], object],
    arguments: Mapping[str, Any],
) -> Packed:
    """Run INQ over ``retrain`` on a network, in place, that starts from its PTQ."""
    plan = solved.packed.plan
    settings = {"masks": find_kept(network, plan)} | _picked(arguments, INQ)
    solved.packed.apply(network)
    return freeze_and_retrain(Incremental(network, plan, **settings), retrain)


def _check_effect(arguments: Mapping[str, Any]) -> None:
    """Raise PlanError if there is an option that has no effect, with or without ``retrain``."""
    way = "with" if "retrain" in arguments else "without"
    used = {*SEARCH, *START, *INQ} if way == "with" else {*SEARCH, *PTQ}
    for name in arguments:
        if name not in used and name not in ("model", "inputs", "retrain"):
            other = "calibrate alone" if way == "with" else "Incremental"
            raise PlanError(
                f"{name}: has no effect {way} retrain, it is an option of {other}; leave it out"
            )


def _picked(arguments: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: arguments[name] for name in names if name in arguments}
