"""A step of a run as data: the plans of its stages, and what it calls on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from octavo._seeds import seed_of
from octavo.runs.recipe import Recipe
from octavo.runs.retraining import Retraining

__all__ = ["Resumable", "StagePlan", "Step", "stage_plans"]


class Resumable(Protocol):
    """An object whose state can be saved and put back: a module, ``Surgery``, ``Incremental``."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return all that is needed to go on from here."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Go on from where ``state`` was taken."""


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage: freeze up to ``portion`` of the weights, then retrain.

    Attributes:
        portion: accumulated share of frozen weights; 0 where the step freezes none.
        epochs: epochs of retraining after that.
        retraining: its settings.
        seed: the seed of what it draws, such as the order of the batches.

    """

    portion: float
    epochs: float
    retraining: Retraining
    seed: int


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Step:
    """A step of a run that retrains a network in stages.

    Attributes:
        name: the name of the step in messages.
        file: the file that holds the state after the last whole stage.
        model: the network that is retrained.
        state: the object whose state the file holds; it includes that of the model.
        stages: the plans of the stages.
        before_stage: called with the index of each stage before it; INQ freezes a portion.
        after_update: called after each update of the weights; surgery changes its masks.
        scored: measure the metric after each stage, for the report.

    """

    name: str
    file: Path
    model: nn.Module
    state: Resumable
    stages: Sequence[StagePlan]
    before_stage: Callable[[int], object] = _nothing
    after_update: Callable[[], object] = _nothing
    scored: bool = False


def stage_plans(
    recipe: Recipe,
    schedule: Sequence[tuple[float, float]],
    *,
    first: int = 0,
    learning_rate: float | None = None,
) -> list[StagePlan]:
    """Return the plans of a step's stages.

    Args:
        recipe: gives the settings of retraining and the seed.
        schedule: the portion and the epochs of each stage.
        first: the number of the first stage; the seed of a stage follows from its number.
        learning_rate: instead of the recipe's.

    """
    settings = recipe.retraining
    if learning_rate is not None:
        settings = replace(settings, learning_rate=learning_rate)
    return [
        StagePlan(portion, epochs, settings, seed_of(recipe.seed, number))
        for number, (portion, epochs) in enumerate(schedule, first)
    ]
