"""The search for the bits of each layer: the public function, and its result."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from octavo._deprecated import renamed_arguments, warn_renamed
from octavo.dnq.enumeration import all_choices
from octavo.dnq.environment import Environment
from octavo.dnq.evaluator import Evaluator, Trial
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.finalists import Finalist, RetrainSteps, Shipping, Verdict, choose, file_limit
from octavo.dnq.journal import Journal
from octavo.dnq.methods import SearchMethod, measures_layers, method_of
from octavo.dnq.objective import Objective
from octavo.dnq.prices import check_budget, within
from octavo.dnq.refinement import Refinement, check_share, run_refined
from octavo.dnq.rivals.exact import exact_choice
from octavo.dnq.settings import METHOD, OPTIONS, REFINE, TRIALS
from octavo.dnq.space import Choice, Space
from octavo.dnq.splitting import Parts, split, undivided
from octavo.dnq.survey import survey
from octavo.errors import BudgetError, PlanError
from octavo.formats.width import WidthLike
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.forward import Inputs, batches_of, check_batches, device_of, on_device
from octavo.network.thread_state import cpu_by_default
from octavo.plan import Budget, Plan
from octavo.progress import Progress, silent
from octavo.ptq.settings import PtqSettings
from octavo.storage.digest import digest

__all__ = ["SearchResult", "search"]


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The result of a search.

    All objectives but those of trials are final measures: those of the network that ships, solved
    as ``calibrate`` does (and retrained, given ``retrain_steps``), on inputs that neither
    calibrated it nor scored trials.

    Attributes:
        plan: the best plan within the budget, or by the trade-off; it can be edited by hand.
        objective: its objective, higher is better. It is never below those of the uniform and the
            exact plan; under a trade-off its reward is not.
        uniform: the uniform plan that the same budget allows (without one: of the most bits not
            above those of the best trial).
        uniform_objective: the objective of the uniform plan.
        exact: the exact solution of the additive model, which a programme finds as if losses of
            single layers added up; where all plans were measured, the best trial.
        exact_objective: the objective of the exact plan.
        finalists: the plans of which the best was chosen, the best first.
        held_out: number of samples that were set aside for the final choice; of batches, where the
            inputs cannot be divided by sample. 0: there were too few, or the objective is the
            user's own, which reads none; all inputs calibrate, score and confirm.
        trials: every plan that was measured, in the order of measuring.
        space: the layers, the actions that they could take, and what these cost.
        sizes: the estimated bytes of a packed file.
        losses: what each layer alone loses at each action, (layers, actions), where it is known.
        refinement: the best trial of the method alone, and the best one after refinement; None
            where nothing was refined.
        enumerated: True if there were so few plans within the budget that all of them were
            measured, whatever the method.

    """

    plan: Plan
    objective: float
    uniform: Plan
    uniform_objective: float
    exact: Plan
    exact_objective: float
    finalists: tuple[Finalist, ...]
    held_out: int
    trials: tuple[Trial, ...]
    space: Space
    sizes: FileSizes
    losses: np.ndarray | None = field(default=None, compare=False)
    refinement: Refinement | None = None
    enumerated: bool = False

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials that no other beats in both objective and stored bits, by stored bits."""
        front: list[Trial] = []
        for trial in sorted(self.trials, key=lambda trial: (trial.stored_bits, -trial.objective)):
            if not front or trial.objective > front[-1].objective:
                front.append(trial)
        return tuple(front)

    def at(self, budget: Budget) -> Plan:
        """Return the best plan within another budget of those that were measured.

        Raises:
            BudgetError: none of them fits; the message says what they cost.

        """
        space = within(self.space, budget, self.sizes)
        fitting = [trial for trial in self.trials if space.fits(trial.choice)]
        if not fitting:
            costs = [space.cost(trial.choice) for trial in self.trials]
            raise BudgetError(
                f"{budget}: none of {len(costs)} trials fits; they cost {min(costs):,.0f} to "
                f"{max(costs):,.0f}, and the limit is {space.limit:,.0f}"
            )
        return max(fitting, key=lambda trial: trial.objective).plan

    @property
    def score(self) -> float:
        """The objective, by its old name."""
        warn_renamed("SearchResult.score", "SearchResult.objective")
        return self.objective

    @property
    def uniform_score(self) -> float:
        """The objective of the uniform plan, by its old name."""
        warn_renamed("SearchResult.uniform_score", "SearchResult.uniform_objective")
        return self.uniform_objective

    def __repr__(self) -> str:
        average = self.plan.cost().average_bits
        uniform_average = self.uniform.cost().average_bits
        held_out = f"{self.held_out} inputs held out" if self.held_out else "no inputs held out"
        return (
            f"SearchResult({len(self.plan)} layers, {average:.3g} average bits, "
            f"objective {self.objective:.5g}; uniform: {uniform_average:.3g} average bits, "
            f"objective {self.uniform_objective:.5g}; exact: objective {self.exact_objective:.5g}; "
            f"{held_out}; {len(self.trials)} trials)"
        )


@renamed_arguments(score="objective", observe="progress")
def search(
    model: nn.Module,
    inputs: Iterable[Inputs],
    *,
    budget: Budget | None = None,
    trade_off: float | None = None,
    options: Sequence[WidthLike] = OPTIONS,
    method: str = METHOD,
    trials: int = TRIALS,
    refine: float = REFINE,
    objective: Objective | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    workers: int = 1,
    pins: Mapping[str, WidthLike] | None = None,
    absorb: bool = PtqSettings.absorb,
    progress: Progress = silent,
    activations: Sequence[int] | None = None,
    retrain_steps: RetrainSteps | None = None,
) -> SearchResult:
    """Choose the bits of each layer; the model is left as it was.

    Half of the inputs calibrate the candidates, a quarter scores trials, and a quarter decides
    among the best few plans, solved as ``calibrate`` does: see ``octavo.dnq.splitting``. With fewer
    than 64 samples nothing is set aside. Where no more plans than ``trials`` are within the
    budget, all of them are measured whatever the method.

    Args:
        model: the trained network.
        inputs: calibration batches, as for ``calibrate``.
        budget: what the plan may cost at most. ``bytes`` and ``ratio`` hold for the file that
            ``calibrate(model, result.plan, inputs)`` writes. Or
        trade_off: what a doubling of the compression ratio is worth, in units of the objective.
            Exactly one of the two is given.
        options: the widths that layers may get: bits, or an ``Apot``.
        method: ``dnq``, the learned policy, or a rival: see ``octavo.dnq.methods``.
        trials: how many plans may be measured, those of single layers included. The exact and
            the uniform plan are measured beside the search where the method has not done so.
        refine: the last share of the trials, at least 0 and less than 1. It goes to the method
            ``evolution``, which starts from the best plan of ``method``.
        objective: a function of the model that is maximised. None: minus what the outputs lose of
            full precision, the KL divergence of logits and the relative squared error of everything
            else: see ``octavo.network.outputs``.
        seed: the same seed gives the same plan, whatever the number of workers.
        journal: file to which each trial is appended; a search that was killed goes on from it.
        workers: how many plans are measured at a time.
        pins: layers whose width is given.
        absorb: give channels ahead of a batch norm a scale of their own, as ``calibrate`` does.
        progress: called with an ``Event`` of the phase ``"search"`` for each trial; its detail is
            the ``Trial``.
        activations: the bits that the inputs of layers may get, such as ``(4, 8)``: they are
            searched for together with those of the weights, under a budget of ``bit_ops``. The
            result's plan has them as ``activations``, for ``quantize_activations``; inputs that
            cannot be quantized stay in float and count 32 bits. None: all stay as they are.
        retrain_steps: a function that trains the network that it is given for a few steps. With it
            the finalists go through ``Incremental`` from their calibration, and are compared after
            that; it is called after each portion but the last. None: they are compared as
            ``calibrate`` solves them.

    Raises:
        BudgetError: no plan can meet the budget; the message has the feasible range. Or
            ``activations`` without ``bit_ops``.
        PlanError: nothing to search, an unknown pin or method, too few trials to measure each layer
            alone, inputs that are quantized already, inputs that do not fit, or an objective that
            is no finite number.
        RecipeError: the journal is that of another search.

    """
    request = _Request(
        budget, trade_off, method, trials, refine, objective, seed, journal, workers, absorb,
        progress, retrain_steps,
    )  # fmt: skip
    _check_request(request)
    batches = [on_device(batch, device_of(model)) for batch in batches_of(inputs)]
    check_batches(len(batches))
    space = survey(model, batches[0], options, pins or {}, activations)
    check_budget(space, budget)
    _check_trials(space, method, trials, refine)
    warn_if_mostly_float(model)
    return _searched(model, batches, space, request)


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
    absorb: bool
    progress: Progress
    retrain_steps: RetrainSteps | None


def _searched(
    model: nn.Module, batches: Sequence[Inputs], surveyed: Space, request: _Request
) -> SearchResult:
    """Search a space: quantize the candidates, measure plans, and choose among the finalists."""
    objective = request.objective
    parts = split(batches) if objective is None else undivided(batches)
    environment = Environment(
        model, surveyed.names, parts.calibrating, surveyed.actions, scoring=parts.scoring,
        objective=objective, workers=request.workers, absorb=request.absorb,
    )  # fmt: skip
    sizes = environment.file_sizes()
    space = within(surveyed, request.budget, sizes)
    settings = _settings(model, batches, space, parts, request)
    path = None if request.journal is None else Path(request.journal)
    evaluator = Evaluator(
        space, environment, Journal(path, space.actions, settings), request.trials,
        trade_off=request.trade_off or 0.0, seed=request.seed, progress=request.progress,
    )  # fmt: skip
    with cpu_by_default():  # the policy's tensors, but not those of the trials
        measured = _measure(evaluator, method_of(request.method), request.refine)
    shipping = Shipping(
        model, batches, parts,
        objective=objective, absorb=request.absorb, retrain_steps=request.retrain_steps,
    )  # fmt: skip
    most = file_limit(request.budget, sizes.float_bytes)
    verdict = choose(evaluator, shipping, measured.exact, most)
    return _result(evaluator, verdict, parts, sizes, measured)


@dataclass(frozen=True)
class _Measured:
    """The outcome of the trials.

    Attributes:
        exact: the exact solution of the additive model; the best trial where all were measured.
        enumerated: True if all plans within the budget were measured.
        refinement: the gain of refinement, if any was asked for.

    """

    exact: Choice
    enumerated: bool = False
    refinement: Refinement | None = None


def _measure(evaluator: Evaluator, method: SearchMethod, refine: float) -> _Measured:
    """Measure all plans within the budget if the trials suffice for that, else those of the
    method.
    """
    every = all_choices(evaluator.space, evaluator.left)
    if every is not None:
        evaluator.rewards(every)
        return _Measured(evaluator.best.choice, enumerated=True)
    refinement = run_refined(method, evaluator, refine)
    exact = exact_choice(evaluator, evaluator.reference_losses())
    return _Measured(exact, refinement=refinement)


def _result(
    evaluator: Evaluator,
    verdict: Verdict,
    parts: Parts,
    sizes: FileSizes,
    measured: _Measured,
) -> SearchResult:
    """Return the best finalist beside the uniform and the exact plan."""
    budget = evaluator.space.budget
    of_file = budget is not None and budget.of_file
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
        losses=evaluator.reference_losses() if of_file else None,
        refinement=measured.refinement,
        enumerated=measured.enumerated,
    )


def _settings(
    model: nn.Module, batches: Sequence[Inputs], space: Space, parts: Parts, request: _Request
) -> dict[str, Any]:
    """Return what the objectives depend on, as the first line of a journal has it."""
    settings: dict[str, Any] = {
        "layers": dict(zip(space.names, space.weights, strict=True)),
        "options": [[action.written() for action in actions] for actions in space.actions],
        "own_score": request.objective is not None,
        "weights": digest(model.state_dict()),
        "inputs": digest(batches),
        "held_out": parts.held_out,
    }
    if request.absorb:
        settings["absorb"] = True
    return settings


def _check_request(request: _Request) -> None:
    """Raise unless the settings fit together, before the inputs are read."""
    budget = request.budget
    trade_off = request.trade_off
    if (budget is None) == (trade_off is None):
        raise BudgetError(
            f"expected exactly one of budget and trade_off, got {budget} and {trade_off}"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f"budget: expected one such as Budget(average_bits=3), got {budget!r}")
    if trade_off is not None and not 0 < trade_off < math.inf:
        raise BudgetError(f"trade_off: expected a positive number, got {trade_off!r}")
    if request.trials < 1 or request.workers < 1:
        raise PlanError(
            f"expected at least 1 trial and 1 worker, got {request.trials} and {request.workers}"
        )
    check_share(request.refine)
    method_of(request.method)  # raises where there is none


def _check_trials(space: Space, method: str, trials: int, refine: float) -> None:
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
