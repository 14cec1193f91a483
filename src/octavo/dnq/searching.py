"""The search for the bits of each layer: the public function, and its result."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from octavo._deprecated import renamed_arguments, warn_renamed
from octavo.dnq.environment import Environment, Objective
from octavo.dnq.evaluator import Evaluator, Trial
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.journal import Journal
from octavo.dnq.methods import method_of
from octavo.dnq.prices import check_budget, within
from octavo.dnq.rivals.uniform import uniform_choice
from octavo.dnq.settings import METHOD, OPTIONS, TRIALS
from octavo.dnq.space import Space
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

    Attributes:
        plan: the best plan within the budget, or by the trade-off; it can be edited by hand.
        objective: its objective, higher is better.
        uniform: the uniform plan that the same budget allows (without one: of the most bits not
            above the plan's average).
        uniform_objective: the objective of the uniform plan.
        trials: every plan that was measured, in the order of measuring.
        space: the layers, the actions that they could take, and what these cost.
        sizes: the estimated bytes of a packed file.

    """

    plan: Plan
    objective: float
    uniform: Plan
    uniform_objective: float
    trials: tuple[Trial, ...]
    space: Space
    sizes: FileSizes

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
        return (
            f"SearchResult({len(self.plan)} layers, {average:.3g} average bits, "
            f"objective {self.objective:.5g}; uniform: {uniform_average:.3g} average bits, "
            f"objective {self.uniform_objective:.5g}; {len(self.trials)} trials)"
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
    objective: Objective | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    workers: int = 1,
    pins: Mapping[str, WidthLike] | None = None,
    absorb: bool = PtqSettings.absorb,
    progress: Progress = silent,
    activations: Sequence[int] | None = None,
) -> SearchResult:
    """Choose the bits of each layer; the model is left as it was, and nothing is retrained.

    Args:
        model: the trained network.
        inputs: calibration batches, as for ``calibrate``.
        budget: what the plan may cost at most; or
        trade_off: what a doubling of the compression ratio is worth, in units of the objective.
            Exactly one of the two is given.
        options: the widths that layers may get: bits, or an ``Apot``.
        method: ``dnq``, the learned policy, or a rival: see ``octavo.dnq.methods``.
        trials: how many plans may be measured, those of single layers included.
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

    Raises:
        BudgetError: no plan can meet the budget; the message has the feasible range. Or
            ``activations`` without ``bit_ops``.
        PlanError: nothing to search, an unknown pin or method, inputs that are quantized already,
            or inputs that do not fit.
        RecipeError: the journal is that of another search.

    """
    _check_settings(budget, trade_off, trials, workers)
    run_method = method_of(method)
    batches = [on_device(batch, device_of(model)) for batch in batches_of(inputs)]
    check_batches(len(batches))
    surveyed = survey(model, batches[0], options, pins or {}, activations)
    check_budget(surveyed, budget)
    warn_if_mostly_float(model)
    environment = Environment(
        model, surveyed.names, batches, surveyed.actions,
        objective=objective, workers=workers, absorb=absorb,
    )  # fmt: skip
    sizes = environment.file_sizes()
    space = within(surveyed, budget, sizes)
    settings = _settings(model, batches, space, own_objective=objective is not None, absorb=absorb)
    known = Journal(None if journal is None else Path(journal), space.actions, settings)
    evaluator = Evaluator(
        space, environment, known, trials,
        trade_off=trade_off or 0.0, seed=seed, progress=progress,
    )  # fmt: skip
    with cpu_by_default():  # the policy's tensors, but not those of the trials
        run_method(evaluator)
        return _result(evaluator, sizes)


def _result(evaluator: Evaluator, sizes: FileSizes) -> SearchResult:
    """Return the best trial beside the uniform plan, which is measured whatever the method left."""
    uniform = uniform_choice(evaluator.space, evaluator.best.choice)
    uniform_objective = evaluator.reference(uniform)
    best = evaluator.best
    return SearchResult(
        plan=best.plan,
        objective=best.objective,
        uniform=evaluator.space.plan(uniform),
        uniform_objective=uniform_objective,
        trials=tuple(evaluator.trials),
        space=evaluator.space,
        sizes=sizes,
    )


def _settings(
    model: nn.Module,
    batches: Sequence[Inputs],
    space: Space,
    *,
    own_objective: bool,
    absorb: bool,
) -> dict[str, Any]:
    """Return what the objectives depend on, as the first line of a journal has it."""
    settings: dict[str, Any] = {
        "layers": dict(zip(space.names, space.weights, strict=True)),
        "options": [[action.written() for action in actions] for actions in space.actions],
        "own_score": own_objective,
        "weights": digest(model.state_dict()),
        "inputs": digest(batches),
    }
    if absorb:
        settings["absorb"] = True
    return settings


def _check_settings(
    budget: Budget | None, trade_off: float | None, trials: int, workers: int
) -> None:
    if (budget is None) == (trade_off is None):
        raise BudgetError(
            f"expected exactly one of budget and trade_off, got {budget} and {trade_off}"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise BudgetError(f"budget: expected one such as Budget(average_bits=3), got {budget!r}")
    if trade_off is not None and not 0 < trade_off < math.inf:
        raise BudgetError(f"trade_off: expected a positive number, got {trade_off!r}")
    if trials < 1 or workers < 1:
        raise PlanError(f"expected at least 1 trial and 1 worker, got {trials} and {workers}")
