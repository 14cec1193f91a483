"""The search for the bits of each layer: the public function, and the course of a search."""

import contextlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from octavo._deprecated import renamed_arguments
from octavo.dnq.enumeration import all_choices
from octavo.dnq.environment import Environment
from octavo.dnq.evaluator import Evaluator, is_ranged
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.finalists import RetrainSteps, Shipping, choose, file_limit
from octavo.dnq.front import front_of, knee_of
from octavo.dnq.journal import Journal, held
from octavo.dnq.methods import SearchMethod, measures_layers, method_of
from octavo.dnq.objective import Objective
from octavo.dnq.prices import check_budget, within
from octavo.dnq.refinement import Outcome, check_share, run_refined
from octavo.dnq.rivals.exact import exact_choice
from octavo.dnq.search_result import SearchResult
from octavo.dnq.settings import METHOD, REFINE, TRIALS
from octavo.dnq.space import Choice, Space
from octavo.dnq.splitting import Parts, reaching, split, undivided
from octavo.dnq.survey import survey
from octavo.errors import BudgetError, PlanError
from octavo.formats.width import WidthLike
from octavo.network.digest import digest, weights_digest
from octavo.network.divergence import TEMPERATURE
from octavo.network.faithful import faithful_copy
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.forward import (
    Inputs,
    batches_of,
    check_batches,
    device_of,
    naming_errors,
    observing,
    on_device,
)
from octavo.network.layers import find_layers, free_layers
from octavo.network.thread_state import cpu_by_default, with_gradients
from octavo.network.values import check_range
from octavo.network.warned import warning_once
from octavo.plan import Budget, check_is_budget
from octavo.progress import Event, Progress, ProgressLike, showing
from octavo.ptq.file_form import FileForm
from octavo.ptq.setting_aside import is_divisible
from octavo.ptq.settings import PtqSettings
from octavo.storage.layer_strings import Coding
from octavo.storage.packed import FloatForm, check_state

__all__ = ["check_trials", "search"]


@renamed_arguments(score="objective", observe="progress")
@warning_once()
def search(
    model: nn.Module,
    inputs: Iterable[Inputs],
    *,
    budget: Budget | None = None,
    trade_off: float | None = None,
    options: Sequence[WidthLike] | None = None,
    method: str = METHOD,
    trials: int = TRIALS,
    refine: float = REFINE,
    objective: Objective | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    workers: int = 1,
    pins: Mapping[str, WidthLike] | None = None,
    absorb: bool = PtqSettings.absorb,
    rate: float = PtqSettings.rate,
    floats: FloatForm | None = None,
    coding: Coding = FileForm.coding,
    progress: ProgressLike = None,
    activations: Sequence[int] | None = None,
    retrain_steps: RetrainSteps | None = None,
) -> SearchResult:
    """Choose the bits of each layer; the model is left as it was.

    Half of the inputs calibrate every layer at each of its widths, a quarter scores plans, and a
    quarter decides among the best few plans, which are solved for this as ``calibrate`` does: see
    ``octavo.dnq.splitting``. With fewer than 64 samples nothing is set aside. Where no more plans
    than ``trials`` are within the budget, all of them are measured, whatever the method.

    Args:
        model: the trained network.
        inputs: calibration batches, as for ``calibrate``.
        budget: the limit on the cost of the plan. ``bytes`` and ``ratio`` hold for the file that
            ``calibrate(model, result.plan, inputs)`` writes with the same ``absorb``, ``rate``,
            ``floats`` and ``coding``. Without a budget and a trade-off, the search covers the whole
            feasible range: ``result.at(budget)`` has a plan for any budget, and ``result.plan`` is
            at the knee of the front.
        trade_off: instead of a budget, the gain in objective that a doubling of the compression
            ratio is worth.
        options: the widths that layers may get: bits, or other widths such as ``"fp4"``. None: 2 to
            5 bits or, where the network has an embedding, a recurrent layer or an attention, 2, 3,
            4, ``"fp4"``, ``"fp6"`` and ``"int8"``.
        method: ``dnq``, the learned policy, or a rival: see ``octavo.dnq.methods``.
        trials: how many plans may be measured, those of single layers included. The exact and
            the uniform plan are measured beside the search where the method has not done so.
        refine: the last share of the trials, at least 0 and less than 1. It goes to the method
            ``evolution``, which starts from the best plan of ``method``.
        objective: a function of the model that is maximised; it reads data of its own, so that no
            inputs are set aside. None: minus what the outputs lose of full precision, the KL
            divergence of logits at temperature 8 and the relative squared error of everything else:
            see ``octavo.network.outputs``.
        seed: the same seed gives the same plan, whatever the number of workers.
        journal: file to which each trial is appended; a search that was killed goes on from it. One
            process at a time writes it.
        workers: how many plans are measured at a time.
        pins: layers whose width is given.
        absorb: give channels ahead of a batch norm a scale of their own, as ``calibrate`` does.
        rate: how much a smaller file is worth, as for ``calibrate``: every layer is solved with it.
        floats: the form of all other tensors in the file, as for ``calibrate``.
        coding: the coding of the file, as for ``calibrate``.
        progress: True shows how far it is. A function is called with an ``Event`` of the phase
            ``"search"`` for each trial; its detail is the ``Trial``. The method ``dnq`` also
            reports events of the phase ``"policy"``, whose detail is a ``Belief``. All other events
            have words only: ``"survey"``, ``"practise"`` and ``"finalist"``.
        activations: the bits that the inputs of layers may get, such as ``(4, 8)``: they are
            searched for together with those of the weights, under a budget of ``bit_ops``. The
            result's plan has them as ``activations``, for ``quantize_activations``; inputs that
            cannot be quantized stay in float and count 32 bits. None: all stay as they are.
        retrain_steps: a function that trains the network that it is given for a few steps. With it
            the finalists go through ``Incremental`` from their calibration, in its default portions
            and order, and are compared after that; it is called after each portion but the last.
            None: they are compared as ``calibrate`` solves them.

    Raises:
        BudgetError: no plan can meet the budget; the message has the feasible range. Or
            ``activations`` without ``bit_ops``.
        PlanError: nothing to search, an unknown pin or method, too few trials to measure each layer
            alone, inputs that are quantized already, inputs that do not fit, or an objective that
            is no finite number.
        RecipeError: the journal is that of another search, or another process writes it.
        FormatError: the journal is damaged before its last line.

    """
    with showing(progress) as callback:
        request = _Request(
            budget, trade_off, method, trials, refine, objective, seed, journal, workers,
            PtqSettings(absorb=absorb, rate=rate), FileForm.asked(floats, coding, rate=rate),
            callback, retrain_steps,
        )  # fmt: skip
        _check_request(model, request)
        batches = _read(model, inputs)
        callback(Event("survey", message="surveying the layers"))
        space = survey(model, batches[0], options, pins or {}, activations, others=batches[1:])
        check_budget(space, budget)
        check_trials(space, method, trials, refine)
        warn_if_mostly_float(model)
        _warn_of_left_out(model, space)
        twin = faithful_copy(model, batches[0])
        with held(journal), _naming_errors(twin, request):
            return _searched(twin, batches, space, request)


def _read(model: nn.Module, inputs: Iterable[Inputs]) -> list[Inputs]:
    """Return all batches, on the device of the model; there has to be one."""
    batches = [on_device(batch, device_of(model)) for batch in batches_of(inputs)]
    check_batches(len(batches))
    return batches


@dataclass(frozen=True, eq=False)
class _Request:
    """The arguments of a search that do not shape its space, as ``search`` documents them."""

    budget: Budget | None
    trade_off: float | None
    method: str
    trials: int
    refine: float
    objective: Objective | None
    seed: int
    journal: str | Path | None
    workers: int
    settings: PtqSettings
    form: FileForm
    progress: Progress
    retrain_steps: RetrainSteps | None


def _searched(
    model: nn.Module, batches: Sequence[Inputs], surveyed: Space, request: _Request
) -> SearchResult:
    """Search a space: quantize the candidates, measure plans, and choose among the finalists."""
    parts = _parts(model, batches) if request.objective is None else undivided(batches)
    known = {layer.name: layer for layer in find_layers(model)[0]}
    parts = reaching(parts, model, [known[name] for name in surveyed.names])
    evaluator, sizes = _evaluator(model, batches, surveyed, parts, request)
    with cpu_by_default(), with_gradients():  # for the policy; trials run as the caller would
        outcome = _measure(evaluator, method_of(request.method), request.refine)
        chosen = _at_knee(evaluator)
        exact = _exact(chosen, outcome)
    shipping = Shipping(
        model, batches, parts, objective=request.objective, settings=request.settings,
        form=request.form, retrain_steps=request.retrain_steps,
    )  # fmt: skip
    most = file_limit(request.budget, sizes.float_bytes)
    verdict = choose(chosen, shipping, exact, most)
    return SearchResult(
        plan=verdict.best.plan,
        objective=verdict.best.final,
        uniform=verdict.uniform.plan,
        uniform_objective=verdict.uniform.final,
        exact=verdict.exact.plan,
        exact_objective=verdict.exact.final,
        finalists=verdict.finalists,
        held_out=parts.held_out,
        trials=tuple(evaluator.trials),
        space=evaluator.space,
        sizes=sizes,
        shipping=shipping,
        losses=chosen.losses(beside=True) if most is not None else None,
        refinement=outcome.refinement,
        estimates=outcome.estimates,
        enumerated=outcome.enumerated,
    )


def _parts(model: nn.Module, batches: Sequence[Inputs]) -> Parts:
    """Return the inputs divided by what they are for, as the model can take them apart."""
    with observing(model):
        by_sample = is_divisible(model, batches[0])
    return split(batches, by_sample=by_sample)


def _naming_errors(model: nn.Module, request: _Request) -> contextlib.AbstractContextManager[None]:
    """Name the layer in whose call inputs fail; functions of the user have inputs of their own."""
    own = request.objective is not None or request.retrain_steps is not None
    return contextlib.nullcontext() if own else naming_errors(model)


def _evaluator(
    model: nn.Module,
    batches: Sequence[Inputs],
    surveyed: Space,
    parts: Parts,
    request: _Request,
) -> tuple[Evaluator, FileSizes]:
    """Quantize the candidates, and return what measures choices within the budget, and the sizes
    of files.
    """
    environment = Environment(
        model, surveyed.names, parts.calibrating, surveyed.actions, scoring=parts.scoring,
        objective=request.objective, workers=request.workers, settings=request.settings,
        progress=request.progress,
    )  # fmt: skip
    sizes = environment.file_sizes(request.form)
    space = within(surveyed, request.budget, sizes)
    journal = _journal(model, batches, space, parts, request)
    evaluator = Evaluator(
        space, environment, journal, request.trials,
        trade_off=request.trade_off or 0.0, seed=request.seed, progress=request.progress,
    )  # fmt: skip
    return evaluator, sizes


def _measure(evaluator: Evaluator, method: SearchMethod, refine: float) -> Outcome:
    """Measure all choices within the budget where they are few, else those of the method."""
    every = all_choices(evaluator.space, evaluator.left)
    if every is None:
        return run_refined(method, evaluator, refine)
    evaluator.under(evaluator.space.limit, len(every)).rewards(every)  # it counts up to these
    return Outcome(enumerated=True)


def _at_knee(evaluator: Evaluator) -> Evaluator:
    """Return the evaluator, where it covers all budgets under that of the front's knee."""
    if not is_ranged(evaluator):
        return evaluator
    space = evaluator.space
    knee = knee_of(front_of(evaluator.trials, space), space)
    return evaluator.under(space.cost(knee.choice), evaluator.left)


def _exact(evaluator: Evaluator, outcome: Outcome) -> Choice:
    """Return the exact solution of the additive model; the best trial where all are measured."""
    if outcome.enumerated:
        return evaluator.best.choice
    return exact_choice(evaluator, evaluator.losses(beside=True))


def _journal(
    model: nn.Module, batches: Sequence[Inputs], space: Space, parts: Parts, request: _Request
) -> Journal:
    """Return the journal; its first line has what the objectives depend on."""
    settings: dict[str, Any] = {
        "layers": dict(zip(space.names, space.weights, strict=True)),
        "options": [[action.written() for action in actions] for actions in space.actions],
        "own_score": request.objective is not None,
        "weights": weights_digest(model.state_dict()),
        "inputs": digest(batches),
        "held_out": parts.held_out,
        "temperature": TEMPERATURE,
    }
    if request.settings.absorb:
        settings["absorb"] = True
    if request.settings.rate:
        settings["rate"] = request.settings.rate
    path = None if request.journal is None else Path(request.journal)
    return Journal(path, space.actions, settings, request.progress)


def _check_request(model: nn.Module, request: _Request) -> None:
    """Raise unless the model has values that can be quantized and stored, and the settings fit
    together, before the inputs are read.
    """
    budget = request.budget
    trade_off = request.trade_off
    if budget is not None and trade_off is not None:
        raise BudgetError(
            f"expected one of budget and trade_off, got both: {budget} and {trade_off}"
        )
    check_is_budget(budget)
    if trade_off is not None and not 0 < trade_off < math.inf:
        raise BudgetError(f"trade_off: expected a positive number, got {trade_off!r}")
    counts = (request.trials, request.workers)
    if not all(isinstance(count, Integral) and count >= 1 for count in counts):
        raise PlanError(
            f"expected at least 1 trial and 1 worker, got {request.trials!r} and "
            f"{request.workers!r}"
        )
    check_share(request.refine)
    method_of(request.method)  # raises where there is none
    free_layers(model)  # raises where none is
    check_state(model)
    check_range(model)


def _warn_of_left_out(model: nn.Module, space: Space) -> None:
    """Warn of layers that no input reaches: a search says nothing of them."""
    layers, _ = find_layers(model)
    left_out = [layer.name for layer in layers if layer.name not in space.names]
    if left_out:
        warnings.warn(
            f"{', '.join(left_out)}: no input reaches {'them' if len(left_out) > 1 else 'it'}, so "
            "the search leaves them in float; give inputs that reach every layer",
            UserWarning,
            stacklevel=4,
        )


def check_trials(space: Space, method: str, trials: int, refine: float) -> None:
    """Raise PlanError if the trials are too few for a method that measures each layer alone."""
    if math.prod(map(len, space.actions)) <= trials or not (refine or measures_layers(method)):
        return
    layers = len(space.names)
    least = sum(map(len, space.actions)) + 1 + (layers > 1)
    left = trials - round(refine * trials)
    if left < least:
        withheld = f" without the {trials - left} of refinement" if refine else ""
        raise PlanError(
            f"trials: expected at least {least}{withheld}, as each of {layers} layers is measured "
            f"alone at each of its actions, got {left}"
        )
