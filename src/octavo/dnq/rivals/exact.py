"""The rival ``exact``: the exact solution of the additive model, as if losses of single layers
added up.
"""

import math

import numpy as np

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.projection import project
from octavo.dnq.space import Choice, Space
from octavo.errors import OctavoError

__all__ = ["exact", "exact_choice", "summed_loss"]

LIMITS = 24  # tried under a trade-off


def exact(evaluator: Evaluator) -> None:
    """Measure the exact solution of the additive model."""
    evaluator.objectives([exact_choice(evaluator, evaluator.losses())])


def exact_choice(evaluator: Evaluator, losses: np.ndarray) -> Choice:
    """Return the choice of least total loss within the budget; under a trade-off, that of the best
    total reward over a range of limits.

    Args:
        evaluator: its space and its trade-off.
        losses: what each layer alone loses at each action, (layers, actions).

    """
    space = evaluator.space
    if space.limit < math.inf:
        return _least_loss(space, losses, space.limit)
    limits = np.linspace(space.cost(space.cheapest), space.cost(space.dearest), LIMITS)
    choices = [_least_loss(space, losses, float(limit)) for limit in limits]
    return max(choices, key=lambda choice: evaluator.reward(choice, -summed_loss(losses, choice)))


def summed_loss(losses: np.ndarray, choice: Choice) -> float:
    """Return the sum of what a choice's layers lose, each alone."""
    return float(sum(losses[layer, action] for layer, action in enumerate(choice)))


def _least_loss(space: Space, losses: np.ndarray, limit: float) -> Choice:
    """Solve the integer programme by HiGHS: one action a layer, the sum of their costs within
    ``limit``.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    pairs = [(layer, action) for layer in range(len(losses)) for action in _indices(space, layer)]
    loss = np.array([losses[pair] for pair in pairs])  # (pairs,)
    cost = np.array([space.costs[pair] for pair in pairs])  # (pairs,)
    one_action_each = np.array(
        [[float(layer == row) for layer, _ in pairs] for row in range(len(space.names))]
    )  # (layers, pairs)
    # The solver's tolerances are absolute, so both the loss and the cost are in units of 1.
    unit = max(limit, 1.0)
    solution = milp(
        loss / max(float(np.abs(loss).max()), 1e-30),
        integrality=np.ones(len(pairs), int),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_action_each, 1, 1),
            LinearConstraint(cost[None] / unit, -np.inf, limit / unit),
        ],
        options={"presolve": False},  # it may print to standard output
    )
    if solution.x is None:
        raise OctavoError(
            f"the integer programme of {len(space.names)} layers was not solved: {solution.message}"
        )
    chosen = tuple(
        action for (_, action), share in zip(pairs, solution.x, strict=True) if share > 0.5
    )
    return project(space, chosen, losses)  # the solver's tolerance may let too dear ones through


def _indices(space: Space, layer: int) -> range:
    return range(len(space.actions[layer]))
