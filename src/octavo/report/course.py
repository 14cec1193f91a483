"""The course of a search in the words and numbers that the report shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Self

from octavo.dnq.front import undominated
from octavo.report.record import RunRecord
from octavo.runs.run_folder import Json

__all__ = ["Course", "plan_words"]

NAMED = 12  # layers up to which a plan is written with the names of its layers
LEAST = 1e-9  # a divergence of nothing is drawn here: a logarithm has no zero


@dataclass(frozen=True)
class Course:
    """The course of a search.

    A row has ``bytes``, ``objective``, ``shown`` (what is drawn: a divergence without its minus)
    and ``plan``, in words.

    Attributes:
        layers: the names of the layers.
        actions: the written actions of each layer.
        divergence: True if the objective is minus a divergence; else it is the task's metric.
        trials: all plans that were measured, in the order of measuring.
        front: the trials that no other beats in both objective and bytes, by rising bytes.
        proposals: the policy's plans for many budgets that no other of them beats, as its world
            model estimates them.
        marked: the uniform, the exact and the chosen plan; their ``mark`` says which.
        beliefs: what the policy believed, moment by moment.
        rewards: the reward of each measured episode, and the best one so far.

    """

    layers: tuple[str, ...]
    actions: tuple[tuple[Any, ...], ...]
    divergence: bool
    trials: tuple[Json, ...]
    front: tuple[Json, ...]
    proposals: tuple[Json, ...]
    marked: tuple[Json, ...]
    beliefs: tuple[Json, ...]
    rewards: tuple[Json, ...]

    @classmethod
    def of(cls, record: RunRecord) -> Self | None:
        """Return the course of a run's search; None if it had none, or wrote none down."""
        content = record.course
        search = record.recipe.get("search")
        if not content or not search:
            return None
        divergence = search["objective"] == "divergence"
        layers = tuple(content["layers"])
        actions = tuple(map(tuple, content["actions"]))
        trials = _rows(content["trials"], layers, actions, divergence=divergence)
        proposals = _rows(content["proposals"], layers, actions, divergence=divergence)
        proposals = _near(proposals, trials)
        return cls(
            layers,
            actions,
            divergence,
            tuple(trials),
            tuple(undominated(trials, itemgetter("bytes"), itemgetter("objective"))),
            tuple(undominated(proposals, itemgetter("bytes"), itemgetter("objective"))),
            tuple(_marked(trials, record.result["search"])),
            tuple(content["beliefs"]),
            tuple(_rewards(content["rewards"], divergence=divergence)),
        )

    @property
    def objective(self) -> str:
        """The name of what is drawn upwards."""
        return "divergence" if self.divergence else "metric"


def plan_words(plan: Mapping[str, Any]) -> str:
    """Return the widths of a plan in words; of many layers, only the widths in their order."""
    if len(plan) <= NAMED:
        return ", ".join(f"{name} {width}" for name, width in plan.items())
    return " ".join(map(str, plan.values()))


def _rows(
    measured: Sequence[Json],
    layers: Sequence[str],
    actions: Sequence[Sequence[Any]],
    *,
    divergence: bool,
) -> list[Json]:
    """Return a row for each plan whose objective is known."""
    rows = []
    for number, each in enumerate(measured, 1):
        objective = each["objective"]
        if objective is None:
            continue
        widths = [actions[layer][index] for layer, index in enumerate(each["choice"])]
        plan = dict(zip(layers, widths, strict=True))
        rows.append(
            {
                "number": number,
                "bytes": each["file_bytes"],
                "objective": objective,
                "shown": shown(objective, divergence=divergence),
                "plan": plan_words(plan),
                "widths": plan,
            }
        )
    return rows


def shown(objective: float, *, divergence: bool) -> float:
    """Return the number that is drawn for an objective, to six digits."""
    return float(f"{max(-objective, LEAST) if divergence else objective:.6g}")


def _near(proposals: Sequence[Json], trials: Sequence[Json]) -> list[Json]:
    """Return the proposals at most as far from the trials, in bytes, as these reach."""
    sizes = [row["bytes"] for row in trials]
    low = min(sizes, default=0)
    high = max(sizes, default=0)
    reach = high - low
    return [row for row in proposals if low - reach <= row["bytes"] <= high + reach]


def _marked(trials: Sequence[Json], search: Json) -> list[Json]:
    """Return the trials of the plans that the result names."""
    titles = (("uniform", "uniform plan"), ("exact", "exact plan"), ("plan", "chosen plan"))
    marked = []
    for key, title in titles:
        matching = [row for row in trials if row["widths"] == _written(search[key], row["widths"])]
        marked += [row | {"mark": title} for row in matching[:1]]
    return marked


def _written(plan: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan of the result in the words of the journal, where an action that has bits of
    inputs too begins with the bits of the weights.
    """
    return {
        name: action if str(action).split("x", maxsplit=1)[0] == str(plan.get(name)) else None
        for name, action in like.items()
    }


def _rewards(rewards: Sequence[float | None], *, divergence: bool) -> list[Json]:
    """Return a row for each episode; one that was not measured any more has none."""
    rows = []
    best = -math.inf
    for episode, reward in enumerate(rewards, 1):
        if reward is None:
            continue
        best = max(best, reward)
        rows.append(
            {
                "episode": episode,
                "shown": shown(reward, divergence=divergence),
                "best": shown(best, divergence=divergence),
            }
        )
    return rows
