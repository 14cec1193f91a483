"""The search for the bits of each layer: what is searched, by which method, and what came of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment, Score
from octavo.dnq.evaluator import Evaluator, Trial
from octavo.dnq.journal import Journal
from octavo.dnq.rivals.methods import RIVALS, uniform_choice
from octavo.dnq.space import Space
from octavo.dnq.survey import survey
from octavo.errors import BudgetError, PlanError, nearest
from octavo.formats.width import write_width
from octavo.network.calling import Inputs, check_given, device_of, on_device
from octavo.network.float_share import warn_if_mostly_float
from octavo.plan import Budget, Plan
from octavo.storage.digest import digest

__all__ = ["METHODS", "Method", "SearchResult", "search"]

Method = Literal["dnq", "exact", "greedy", "tpe", "cmaes", "random", "uniform"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        plan: the best within the budget, or by the trade-off; it can be edited by hand.
        score: its score, higher is better.
        uniform: the uniform plan that the same budget allows (without one: of the most bits not
            above the plan's average).
        uniform_score: its score.
        trials: every plan that was scored, in the order of scoring.

    """

    plan: Plan
    score: float
    uniform: Plan
    uniform_score: float
    trials: tuple[Trial, ...]
    space: Space

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials that no other beats in both score and stored bits, by stored bits."""
        front: list[Trial] = []
        for trial in sorted(self.trials, key=lambda trial: (trial.stored_bits, -trial.score)):
            if not front or trial.score > front[-1].score:
                front.append(trial)
        return tuple(front)

    def at(self, budget: Budget) -> Plan:
        """The best plan within another budget, of those that were scored; nothing is searched anew.

        Raises:
            BudgetError: none of them fits; the message says what they cost.

        """
        fitting = [
            trial for trial in self.trials if budget.allows(self.space.plan(trial.choice).cost())
        ]
        if not fitting:
            costs = [self.space.plan(trial.choice).cost() for trial in self.trials]
            low, high = (pick(cost.average_bits for cost in costs) for pick in (min, max))
            raise BudgetError(
                f"{budget}: none of {len(costs)} trials fits; they have {low:g} to {high:g} average bits"
            )
        return self.space.plan(max(fitting, key=lambda trial: trial.score).choice)


def search(
    model: nn.Module,
    inputs: Iterable[Inputs],
    *,
    budget: Budget | None = None,
    trade_off: float | None = None,
    options: Sequence[int] = (2, 3, 4, 5),
    method: str = "dnq",
    trials: int = 512,
    score: Score | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    workers: int = 1,
    pins: Mapping[str, int] | None = None,
    absorb: bool = False,
    observe: Callable[[Trial], None] = lambda _: None,
    activations: Sequence[int] | None = None,
) -> SearchResult:
    """Choose the bits of each layer; the model is left as it was, and nothing is retrained.

    Args:
        model: the trained network.
        inputs: calibration batches, as for ``calibrate``.
        budget: what the plan may cost at most; or
        trade_off: what a doubling of the compression ratio is worth, in units of the score. Exactly
            one of the two.
        options: the bits that layers may get; among them may be an ``Apot`` or several.
        method: ``dnq``, the learned controller, or a rival: see ``octavo.dnq.rivals.methods``.
        trials: how many plans, those of single layers included, may be scored.
        score: what to score a model by, higher is better; None: minus what its outputs lose of full
            precision, the KL divergence of logits and the relative squared error of all else: see
            ``octavo.network.outputs``.
        seed: of what is drawn: the same seed gives the same plan, whatever the number of workers.
        journal: file to which each trial is appended; a search that was killed goes on from it.
        workers: how many plans are scored at a time.
        pins: layers whose bits are given.
        absorb: give channels ahead of a batch norm a scale of their own, as ``calibrate`` does.
        observe: called with each trial.
        activations: the bits that the inputs of layers may get, such as ``(4, 8)``: they are
            searched for together with those of the weights, under a budget of ``bit_ops``. What is
            found is the plan's ``activations``, for ``quantize_activations``; inputs that cannot be
            quantized stay in float and count 32 bits. None: all stay as they are.

    Raises:
        BudgetError: no plan can meet the budget; the message has the feasible range. Or
            ``activations`` without ``bit_ops``.
        PlanError: nothing to search, an unknown pin or method, inputs that are quantized already,
            or inputs that do not fit.
        RecipeError: the journal is that of another search.

    """
    _check(budget, trade_off, method, trials, workers)
    warn_if_mostly_float(model)
    batches = [on_device(batch, device_of(model)) for batch in inputs]
    check_given(given=bool(batches))
    space = survey(model, batches[0], options, pins or {}, budget, activations)
    environment = Environment(
        model, space.names, batches, space.options, score=score, workers=workers, absorb=absorb
    )
    settings = {
        "layers": dict(zip(space.names, space.weights, strict=True)),
        "options": [list(map(write_width, options)) for options in space.options],
        "own_score": score is not None,
        "weights": digest(model.state_dict()),
        "inputs": digest(batches),
    } | ({"absorb": True} if absorb else {})
    bench = Evaluator(
        space, environment, Journal(None if journal is None else Path(journal), settings), trials,
        trade_off=trade_off or 0.0, seed=seed, observe=observe,
    )  # fmt: skip
    (dnq if method == "dnq" else RIVALS[method])(bench)
    uniform = uniform_choice(space, bench.best.choice)
    bench.left = 1  # the uniform plan stands beside every result, whatever the method had left
    (uniform_score,) = bench.score([uniform])
    best = bench.best
    return SearchResult(
        space.plan(best.choice),
        best.score,
        space.plan(uniform),
        uniform_score,
        tuple(bench.trials),
        space,
    )


def _check(
    budget: Budget | None, trade_off: float | None, method: str, trials: int, workers: int
) -> None:
    if (budget is None) == (trade_off is None):
        raise BudgetError(
            f"expected exactly one of budget and trade_off, got {budget} and {trade_off}"
        )
    if trade_off is not None and not 0 < trade_off < math.inf:
        raise BudgetError(f"trade_off: expected a positive number, got {trade_off!r}")
    if method not in METHODS:
        raise PlanError(
            f"method: expected one of {', '.join(METHODS)}, got {method!r}{nearest(method, METHODS)}"
        )
    if trials < 1 or workers < 1:
        raise PlanError(f"expected at least 1 trial and 1 worker, got {trials} and {workers}")
