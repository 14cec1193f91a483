"""The result of a search as plain data: for ``result.json`` and for scripts."""

from typing import Any, TypeAlias

from octavo.dnq.evaluator import Trial
from octavo.dnq.finalists import Finalist
from octavo.dnq.front import Estimate
from octavo.dnq.refinement import Refinement
from octavo.dnq.search_result import SearchResult
from octavo.formats.width import write_widths

__all__ = ["estimated_bytes", "front_figures", "search_figures"]

Json: TypeAlias = dict[str, Any]


def search_figures(result: SearchResult, method: str) -> Json:
    """Return the figures of a search.

    Each ``score`` is an objective by the final measure: that of the network that ships, on inputs
    that neither calibrated it nor scored trials. Each ``trial_score`` is the objective of a trial.
    """
    figures: Json = {
        "method": method,
        "trials": len(result.trials),
        "enumerated": result.enumerated,
        "held_out": result.held_out,
        "plan": write_widths(result.plan),
        "score": result.objective,
        "uniform": write_widths(result.uniform),
        "uniform_score": result.uniform_objective,
        "exact": write_widths(result.exact),
        "exact_score": result.exact_objective,
        "finalists": [_finalist(finalist) for finalist in result.finalists],
    }
    if result.refinement is not None:
        figures["refinement"] = _refinement(result.refinement)
    return figures


def front_figures(result: SearchResult) -> list[Json]:
    """Return the trials that no other trial beats in both objective and size, the smallest first.

    The bytes of the file are estimated.
    """
    return [
        {
            "plan": write_widths(trial.plan),
            "average_bits": trial.plan.cost().average_bits,
            "file_bytes": estimated_bytes(result, trial),
            "trial_score": trial.objective,
        }
        for trial in result.pareto
    ]


def estimated_bytes(result: SearchResult, trial: Trial | Estimate) -> int:
    """Return the estimated bytes of the packed file of a plan that was measured or proposed."""
    sizes = result.sizes
    codes = sum(float(sizes.codes[pair]) for pair in enumerate(trial.choice))
    return round(sizes.rest + codes)


def _finalist(finalist: Finalist) -> Json:
    return {
        "plan": write_widths(finalist.plan),
        "file_bytes": finalist.file_bytes,
        "trial_score": finalist.objective,
        "score": finalist.final,
    }


def _refinement(refinement: Refinement) -> Json:
    """Return the best trial of the method alone, and what refinement added to its reward."""
    return {
        "before": write_widths(refinement.before.plan),
        "before_trial_score": refinement.before.objective,
        "after": write_widths(refinement.after.plan),
        "after_trial_score": refinement.after.objective,
        "added": refinement.added,
    }
