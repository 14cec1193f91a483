"""The rival ``greedy``: cheapest steps down by single-layer losses, then exchanges that help."""

from collections.abc import Iterator

import numpy as np

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.projection import project
from octavo.dnq.rivals.exact import summed_loss
from octavo.dnq.space import DOWN, UP, Choice, Space

__all__ = ["greedy"]


def greedy(evaluator: Evaluator) -> None:
    """Go down from the dearest choice by the steps that lose least, then exchange bits between
    layers as long as that helps.
    """
    space = evaluator.space
    losses = evaluator.losses()
    best = project(space, space.dearest, losses)
    (best_reward,) = evaluator.rewards([best])
    improved = True
    while improved and evaluator.left:
        improved = False
        for other in _exchanges(space, best, losses):
            (reward,) = evaluator.rewards([other])
            if reward > best_reward:
                best = other
                best_reward = reward
                improved = True
                break


def _exchanges(space: Space, choice: Choice, losses: np.ndarray) -> Iterator[Choice]:
    """Yield choices with one layer a step up or down and the budget restored, the most promising by
    single-layer losses first.
    """
    others = []
    for layer, actions in enumerate(space.actions):
        for direction in (DOWN, UP):
            action = choice[layer] + direction
            if 0 <= action < len(actions):
                moved = (*choice[:layer], action, *choice[layer + 1 :])
                others.append(project(space, moved, losses, keep=layer))
    distinct = [other for other in dict.fromkeys(others) if other != choice]
    yield from sorted(distinct, key=lambda other: summed_loss(losses, other))
