"""Refinement: the last share of a method's trials goes to evolution from the method's best plan."""

from dataclasses import dataclass

import numpy as np

from octavo.dnq.agent import dnq
from octavo.dnq.evaluator import Evaluator, Trial, is_ranged
from octavo.dnq.front import Estimate
from octavo.dnq.methods import SearchMethod
from octavo.dnq.rivals.evolution import evolve
from octavo.errors import PlanError

__all__ = ["Outcome", "Refinement", "check_share", "run_refined"]

RANGE = 9  # budgets under which a method other than the policy is run, where all are covered


@dataclass(frozen=True)
class Refinement:
    """The gain that refinement brought.

    Attributes:
        before: the best trial of the method alone.
        after: the best trial after refinement; the same one where it found nothing better.

    """

    before: Trial
    after: Trial

    @property
    def added(self) -> float:
        """The reward that refinement added; under a budget the reward is the objective."""
        return self.after.reward - self.before.reward


def check_share(share: float) -> None:
    """Raise PlanError unless ``share`` is a share of the trials that leaves the method some."""
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 <= share < 1:
        raise PlanError(
            f"refine: expected a share of the trials, at least 0 and less than 1, got {share!r}"
        )


@dataclass(frozen=True)
class Outcome:
    """The outcome of a method, beside the trials that the evaluator has.

    Attributes:
        refinement: the gain that refinement brought; None where nothing was refined.
        estimates: what a learned policy proposes for other budgets.
        enumerated: True if all choices within the budget were measured, and no method was run.

    """

    refinement: Refinement | None = None
    estimates: tuple[Estimate, ...] = ()
    enumerated: bool = False


def run_refined(method: SearchMethod, evaluator: Evaluator, share: float) -> Outcome:
    """Run a method on all but the last ``share`` of the trials, and refine its best plan by the
    rest.

    The trials of single layers count to the method. Trials that the method leaves go to refinement.
    In a search without budget and trade-off, the policy draws a budget for each batch; any other
    method, and refinement, has an equal share of the trials under each of RANGE budgets.

    Args:
        method: measures plans by the evaluator.
        evaluator: measures and counts.
        share: at least 0 and less than 1; 0 runs the method alone.

    Raises:
        PlanError: too few trials are left for each layer alone and for one plan of the method.

    """
    if not share:
        return Outcome(estimates=_run(method, evaluator))
    evaluator.reserve = round(share * evaluator.left)
    evaluator.sensitivity(outputs=True)  # the world model of the refinement begins from it
    estimates = _run(method, evaluator)
    before = evaluator.best
    evaluator.reserve = 0
    _under_each(lambda under: evolve(under, under.best.choice), evaluator)
    return Outcome(Refinement(before, evaluator.best), estimates)


def _run(method: SearchMethod, evaluator: Evaluator) -> tuple[Estimate, ...]:
    """Run a method and return what it proposes for other budgets."""
    if method is not dnq and is_ranged(evaluator):
        evaluator.sensitivity(outputs=True)
        _under_each(method, evaluator)
        return ()
    return method(evaluator) or ()


def _under_each(run: SearchMethod, evaluator: Evaluator) -> None:
    """Run a method: under each of RANGE budgets where the search covers all of them."""
    if not is_ranged(evaluator):
        run(evaluator)
        return
    space = evaluator.space
    low = space.cost(space.cheapest)
    limits = np.linspace(low, space.cost(space.dearest), RANGE + 2)[1:-1]
    for done, limit in enumerate(limits.tolist()):
        run(evaluator.under(limit, evaluator.left // (RANGE - done)))
