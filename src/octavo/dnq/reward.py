"""DNQ's reward. Its paper published none: this one is ours."""

import math

from octavo.plan import Plan

__all__ = ["reward_of"]


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
