"""Enumeration: in a small space every choice within the budget is measured."""

import numpy as np

from octavo.dnq.space import Choice, Space

__all__ = ["all_choices"]

SLACK = 1e-9  # share of the limit that rounding of sums may take while choices are incomplete


def all_choices(space: Space, most: int) -> list[Choice] | None:
    """Return all choices within the budget; None where there are more than ``most``.

    The list grows layer by layer. The beginning of a choice is kept if the cheapest actions of the
    other layers complete it within the budget. So there are never more beginnings than choices, and
    the work ends as soon as the list is too long.
    """
    cheapest = np.nanmin(space.costs, axis=1)  # (layers,)
    rest = np.append(cheapest[::-1].cumsum()[::-1], 0.0)  # the least that layers from here on cost
    beginnings: list[tuple[Choice, float]] = [((), 0.0)]
    for layer, actions in enumerate(space.actions):
        room = space.limit * (1 + SLACK) - float(rest[layer + 1])
        costs = space.costs[layer, : len(actions)].tolist()
        beginnings = [
            ((*choice, action), spent + cost)
            for choice, spent in beginnings
            for action, cost in enumerate(costs)
            if spent + cost <= room
        ]
        if len(beginnings) > most:
            return None
    return [choice for choice, _ in beginnings if space.fits(choice)]
