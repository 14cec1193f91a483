"""The rival ``evolution``: it mutates the best plans so far and measures those mutants that the
world model estimates to be the best.

Other methods are refined by the same search: see ``octavo.dnq.refinement``.
"""

from collections.abc import Sequence

import numpy as np

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.projection import project
from octavo.dnq.rivals.exact import exact_choice
from octavo.dnq.rivals.proposals import proposals
from octavo.dnq.space import Choice
from octavo.dnq.world_model import WorldModel, world_model_of

__all__ = ["evolution", "evolve"]

PARENTS = 8  # the best trials so far, from which the mutations of a generation begin
# Mutants that are measured after each round of mutation. Mutants of early rounds are estimated
# well, because they are near what was measured; those of later rounds may be better.
MEASURED = 2
PATIENCE = 5  # generations in a row without a new plan, after which a small space has no more


def evolution(evaluator: Evaluator) -> None:
    """Measure the exact solution of the additive model, then evolve from it."""
    losses = evaluator.sensitivity(outputs=True).losses
    evolve(evaluator, exact_choice(evaluator, losses))


def evolve(evaluator: Evaluator, start: Choice) -> None:
    """Measure ``start`` and then, generation by generation, mutants of the best trials so far.

    The world model learns from every trial, whatever method measured it. The search ends when no
    evaluation is left, or when mutation gives no new plan any more.

    Raises:
        PlanError: too few evaluations are left for each layer alone and for one plan.

    """
    sensitivity = evaluator.sensitivity(outputs=True)
    world_model = world_model_of(evaluator.space.actions, sensitivity)
    evaluator.objectives([start])
    learned = 0
    stale = 0
    while evaluator.left and stale < PATIENCE:
        new = evaluator.trials[learned:]
        learned = len(evaluator.trials)
        world_model.learn([trial.choice for trial in new], [trial.objective for trial in new])
        mutants = _promising(evaluator, world_model, sensitivity.losses)
        evaluator.objectives(mutants)
        stale = 0 if mutants else stale + 1


def _promising(evaluator: Evaluator, world_model: WorldModel, losses: np.ndarray) -> list[Choice]:
    """Return new mutants of the best trials: the best by the world model after each round."""
    space = evaluator.space

    def within(choice: Choice) -> Choice:
        return project(space, choice, losses)

    def estimated(choices: Sequence[Choice]) -> list[float]:
        objectives = world_model.objectives(choices).tolist()
        return [evaluator.reward(*pair) for pair in zip(choices, objectives, strict=True)]

    best = sorted(evaluator.trials, key=lambda trial: trial.reward, reverse=True)[:PARENTS]
    parents = [trial.choice for trial in best]
    promising: list[Choice] = []
    for ranked in proposals(space, within, estimated, parents, evaluator.generator):
        new = [each for each in ranked if each not in evaluator and each not in promising]
        promising += new[:MEASURED]
    return promising
