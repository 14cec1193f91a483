"""Refinement: the last share of a method's trials goes to evolution from the method's best plan."""

from dataclasses import dataclass

from octavo.dnq.evaluator import Evaluator, Trial
from octavo.dnq.methods import SearchMethod
from octavo.dnq.rivals.evolution import evolve
from octavo.errors import PlanError

__all__ = ["Refinement", "check_share", "run_refined"]


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


def run_refined(method: SearchMethod, evaluator: Evaluator, share: float) -> Refinement | None:
    """Run a method on all but the last ``share`` of the trials, and refine its best plan by the
    rest.

    The trials of single layers count to the method. Trials that the method leaves go to refinement.

    Args:
        method: measures plans by the evaluator.
        evaluator: measures and counts.
        share: at least 0 and less than 1; 0 runs the method alone, and returns None.

    Raises:
        PlanError: too few trials are left for each layer alone and for one plan of the method.

    """
    if not share:
        method(evaluator)
        return None
    evaluator.reserve = round(share * evaluator.left)
    evaluator.sensitivity(outputs=True)  # the world model of the refinement begins from it
    method(evaluator)
    before = evaluator.best
    evaluator.reserve = 0
    evolve(evaluator, before.choice)
    return Refinement(before, evaluator.best)
