"""Projection: a choice is brought within the budget, and what the budget leaves is filled up.

Both are greedy walks. A step changes one layer to a neighbouring action; its rate is what the layer
alone loses by it for each unit of cost. The walk takes the step of the lowest rate, again and
again.
"""

import heapq
import math
from typing import TypeAlias

import numpy as np

from octavo.dnq.space import DOWN, UP, Choice, Space, Step

__all__ = ["project"]

Offer: TypeAlias = tuple[float, int, Step]  # the rate of a step, its layer, the step


def project(space: Space, choice: Choice, losses: np.ndarray, *, keep: int | None = None) -> Choice:
    """Return the choice brought within the budget, and filled up to it where that lowers losses.

    Args:
        space: the space of the choice.
        choice: any choice.
        losses: what each layer alone loses at each action, (layers, actions).
        keep: a layer to leave as it is while others can be changed instead.

    """
    walk = _Walk(space, choice, losses)
    walk.down(keep)
    walk.down(None)
    if space.limit < math.inf:
        walk.up(keep)
    return tuple(walk.choice)


class _Walk:
    """A walk through the space: where it is, and what the budget leaves there."""

    def __init__(self, space: Space, choice: Choice, losses: np.ndarray) -> None:
        self.choice = list(choice)
        self._space = space
        self._losses: list[list[float]] = losses.tolist()
        self._room = 0.0

    def down(self, keep: int | None) -> None:
        """Take steps down until the choice fits: those first that lose least for what they free."""
        self._room = self._space.room(tuple(self.choice))
        if self._room >= 0:
            return
        offers = self._offers(DOWN, keep)
        while offers and self._room < 0:
            _, layer, step = heapq.heappop(offers)
            self._take(layer, step)
            self._push(offers, layer, DOWN)

    def up(self, keep: int | None) -> None:
        """Take the steps up that fit and lower the loss: those first that lower it most."""
        self._room = self._space.room(tuple(self.choice))
        offers = self._offers(UP, keep)
        while offers:
            rate, layer, step = heapq.heappop(offers)
            if rate >= 0:
                continue
            if step.cost <= self._room:
                self._take(layer, step)
            self._push(offers, layer, UP)  # where this step no longer fits, another one may

    def _offers(self, direction: int, keep: int | None) -> list[Offer]:
        """Return the best step of each layer, as a heap by rate."""
        offers: list[Offer] = []
        for layer in range(len(self.choice)):
            if layer != keep:
                self._push(offers, layer, direction)
        return offers

    def _push(self, offers: list[Offer], layer: int, direction: int) -> None:
        """Offer the best step of a layer, if there is one; a step up has to fit."""
        now = self.choice[layer]
        losses = self._losses[layer]
        best: tuple[float, float] | None = None
        best_step: Step | None = None
        for step in self._space.steps[layer][now, direction]:
            if direction == UP and step.cost > self._room:
                continue
            rate = (losses[step.action] - losses[now]) / max(abs(step.cost), 1e-9)
            if best is None or (rate, losses[step.action]) < best:
                best = (rate, losses[step.action])
                best_step = step
        if best is not None and best_step is not None:
            heapq.heappush(offers, (best[0], layer, best_step))

    def _take(self, layer: int, step: Step) -> None:
        self.choice[layer] = step.action
        self._room -= step.cost
