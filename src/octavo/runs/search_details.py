"""The course of a search as plain data: ``search.json`` in a run's folder, for its report."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.dnq.belief import Belief
from octavo.dnq.front import undominated
from octavo.dnq.search_result import SearchResult
from octavo.runs.run_folder import Json
from octavo.runs.search_figures import estimated_bytes

__all__ = ["search_details"]

MOMENTS = 60  # moments at which the policy's belief is kept


def search_details(result: SearchResult, beliefs: Sequence[Belief]) -> Json:
    """Return all trials of a search, and what its policy believed on the way.

    A choice is a list of indices into the actions of each layer. Bytes of files are estimated.
    Numbers that do not exist are null. Of the policy's proposals, those are kept that no other
    beats in both bytes and objective.
    """
    space = result.space
    proposals = undominated(
        result.estimates,
        lambda estimate: estimated_bytes(result, estimate),
        lambda estimate: estimate.objective,
    )
    return {
        "layers": list(space.names),
        "weights": list(space.weights),
        "actions": [[action.written() for action in actions] for actions in space.actions],
        "budget": None if space.budget is None else str(space.budget),
        "limit": _number(space.limit),
        "single_losses": None if result.losses is None else _table(result.losses),
        "trials": [
            {
                "choice": list(trial.choice),
                "objective": _number(trial.objective),
                "reward": _number(trial.reward),
                "file_bytes": estimated_bytes(result, trial),
            }
            for trial in result.trials
        ],
        "proposals": [
            {
                "choice": list(estimate.choice),
                "objective": _number(estimate.objective),
                "file_bytes": estimated_bytes(result, estimate),
            }
            for estimate in proposals
        ],
        "rewards": [_number(reward) for belief in beliefs for reward in belief.rewards],
        "beliefs": [_belief(*each) for each in _spread(_numbered(beliefs))],
    }


def _numbered(beliefs: Sequence[Belief]) -> list[tuple[int, Belief]]:
    """Return each belief with the number of episodes up to it."""
    ends = itertools.accumulate(len(belief.rewards) for belief in beliefs)
    return list(zip(ends, beliefs, strict=True))


def _belief(episode: int, belief: Belief) -> Json:
    return {
        "episode": episode,
        "measured": belief.measured,
        "entropy": _number(belief.entropy),
        "probabilities": _table(belief.probabilities, digits=4),
    }


def _spread(beliefs: Sequence[tuple[int, Belief]]) -> list[tuple[int, Belief]]:
    """Return at most ``MOMENTS`` of the beliefs, spread evenly, the first and the last included."""
    if len(beliefs) <= MOMENTS:
        return list(beliefs)
    picked = np.linspace(0, len(beliefs) - 1, MOMENTS).round().astype(int)
    return [beliefs[index] for index in picked.tolist()]


def _table(values: np.ndarray, digits: int = 8) -> list[list[Any]]:
    return [[_number(round(value, digits)) for value in row] for row in values.tolist()]


def _number(value: float) -> float | None:
    """Return the number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None
