"""The plans of a step's stages: what each freezes, and how it retrains after that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo._seeds import seed_of
from octavo.runs.recipe import Recipe
from octavo.runs.training import Retraining

__all__ = ["StagePlan", "stage_plans"]


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
