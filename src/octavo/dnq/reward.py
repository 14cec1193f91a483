"""DNQ's reward. Its paper published none: this one is ours."""

import math

from octavo.plan import Plan

__all__ = ["LEAST", "learning_reward", "reward_of"]

LEAST = 1e-12  # the least divergence that is told from none


def reward_of(objective: float, plan: Plan, trade_off: float) -> float:
    """Return the number that the search maximises: ``objective + trade_off * log2(ratio)``.

    Under a budget the trade-off is 0, and the reward is the objective: every plan that is measured
    is within the budget.

    Args:
        objective: the objective of the plan, higher is better.
        plan: the plan; its ratio is 32 bits over its average nominal bits.
        trade_off: the gain in objective that a doubling of the ratio is worth.

    """
    return objective + trade_off * math.log2(plan.cost().ratio)


def learning_reward(reward: float) -> float:
    """Return the reward that the policy learns from, where a reward is minus a divergence: minus
    its logarithm.

    The best plan is the same. But divergences of different budgets differ by orders of magnitude,
    and so do those of good and bad plans under one budget; their logarithms do not.
    """
    return -math.log(max(-reward, LEAST))
