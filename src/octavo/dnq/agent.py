"""The method ``dnq``: a recurrent policy, trained by policy gradient (arXiv 1812.02375).

The paper's public record says what is learned and how, and nothing of the architecture, the
features, the reward or the quantizer's formula: all of these are our reconstruction. The policy
starts by imitating the exact solution of the additive model, unless it is asked not to, and goes on
learning in the world model, which costs no evaluations. Then it learns from choices that are
measured: of those near its samples and near the best so far, the ones that the world model,
corrected by everything measured, estimates to be the best.
"""

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from octavo._seeds import seeded
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.features import allowed_actions, features_of
from octavo.dnq.policy import Policy
from octavo.dnq.projection import project
from octavo.dnq.reinforce import Reinforce, imitate, learn
from octavo.dnq.rivals.exact import exact_choice
from octavo.dnq.rivals.proposals import proposals
from octavo.dnq.space import Choice
from octavo.dnq.world_model import WorldModel, world_model_of

__all__ = ["dnq"]

IMAGINED = 6000  # choices that are estimated before the first of the policy's is measured
# Choices that are measured of each round of proposals: near ones are estimated well, far ones may
# be better.
MEASURED = 2


def dnq(evaluator: Evaluator, *, warm: bool = True, settings: Reinforce | None = None) -> None:
    """Measure choices near what the policy samples until the evaluations are spent.

    Args:
        evaluator: measures and counts; it knows the space.
        warm: begin by imitating the exact solution of the additive model, then learn in the world
            model; else the world model only says what to measure.
        settings: settings of the policy gradient.

    """
    settings = settings or Reinforce()
    sensitivity = evaluator.sensitivity(outputs=True)
    losses = sensitivity.losses
    policy = _new_policy(evaluator, losses)
    world_model = world_model_of(evaluator.space.actions, sensitivity)
    measured = _Measured(evaluator, losses, world_model)
    if warm:
        start = exact_choice(evaluator, losses)
        measured.objectives([start])
        imitate(policy, start, settings)
        _train(policy, settings, evaluator, losses, _Imagined(evaluator, world_model))
    _train(policy, settings, evaluator, losses, measured)


class _Rewards(Protocol):
    """The rewards that the policy learns from: measured or imagined ones."""

    @property
    def left(self) -> int:
        """The number of new choices that may still be tried."""

    def rewards(self, choices: Sequence[Choice]) -> tuple[Sequence[Choice], list[float]]:
        """Return the choices that were tried for the sampled ones, with their rewards."""


class _Imagined:
    """The rewards of choices as the world model estimates them, up to IMAGINED choices."""

    def __init__(self, evaluator: Evaluator, world_model: WorldModel) -> None:
        self._evaluator = evaluator
        self._world_model = world_model
        self.left = IMAGINED

    def rewards(self, choices: Sequence[Choice]) -> tuple[Sequence[Choice], list[float]]:
        """Return the choices with their estimated rewards."""
        self.left = max(0, self.left - len(choices))
        return choices, _estimated(self._evaluator, self._world_model, choices)


class _Measured:
    """The measured rewards of choices near the sampled ones and near the best so far. Only
    those choices are measured that the world model estimates to be the best.
    """

    def __init__(self, evaluator: Evaluator, losses: np.ndarray, world_model: WorldModel) -> None:
        self._evaluator = evaluator
        self._losses = losses
        self._world_model = world_model

    @property
    def left(self) -> int:
        """The number of choices that may still be measured."""
        return self._evaluator.left

    def rewards(self, choices: Sequence[Choice]) -> tuple[Sequence[Choice], list[float]]:
        """Return the choices that were measured, with their rewards; the best estimated ones where
        none is new.
        """
        evaluator = self._evaluator
        space = evaluator.space
        start = [*choices, evaluator.best.choice] if evaluator.trials else choices
        within = functools.partial(project, space, losses=self._losses)
        estimated = functools.partial(_estimated, evaluator, self._world_model)
        tried: list[Choice] = []
        for proposed in proposals(space, within, estimated, start, evaluator.generator):
            new = [each for each in proposed if each not in tried and each not in evaluator]
            tried += new[:MEASURED]
        tried = tried or proposed[:MEASURED]
        objectives = self.objectives(tried)
        return tried, [evaluator.reward(*pair) for pair in zip(tried, objectives, strict=True)]

    def objectives(self, choices: Sequence[Choice]) -> list[float]:
        """Measure objectives, from which the world model learns."""
        new = [choice not in self._evaluator for choice in choices]
        objectives = self._evaluator.objectives(choices)
        learned = [at for at, each in enumerate(objectives) if new[at] and each > -math.inf]
        self._world_model.learn([choices[at] for at in learned], [objectives[at] for at in learned])
        return objectives


def _new_policy(evaluator: Evaluator, losses: np.ndarray) -> Policy:
    """Return an untrained policy; its weights are drawn from the evaluator's seed."""
    space = evaluator.space
    with seeded(evaluator.generator.initial_seed()):
        return Policy(features_of(space, losses), allowed_actions(space))


def _estimated(
    evaluator: Evaluator, world_model: WorldModel, choices: Sequence[Choice]
) -> list[float]:
    """Return the rewards of choices as the world model estimates them."""
    objectives = world_model.objectives(choices).tolist()
    return [evaluator.reward(*pair) for pair in zip(choices, objectives, strict=True)]


def _train(
    policy: Policy,
    settings: Reinforce,
    evaluator: Evaluator,
    losses: np.ndarray,
    rewards: _Rewards,
) -> None:
    """Train the policy by these rewards, its samples brought within the budget."""

    def reward_of(sampled: Tensor) -> tuple[Tensor, Tensor]:
        within = [project(evaluator.space, tuple(row), losses) for row in sampled.tolist()]
        tried, reward = rewards.rewards(within)
        return torch.tensor(list(tried)), torch.tensor(reward, dtype=torch.float64)

    learn(policy, settings, evaluator.generator, reward_of, left=lambda: rewards.left)
