"""The objective of a search: a function of a network that is maximised."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from octavo.errors import PlanError

__all__ = ["Objective", "checked_objective"]

Objective: TypeAlias = Callable[[nn.Module], float]


def checked_objective(value: Any, plan: str) -> float:
    """Return an objective as a number.

    Args:
        value: what the objective returned: a number, or a tensor or an array of one number.
        plan: the bits of the layers, for the error.

    Raises:
        PlanError: the value is no finite number; the message names the plan.

    """
    number = _number(value)
    if number is not None and math.isfinite(number):
        return number
    got = type(value).__name__ if number is None and value is not None else number
    raise PlanError(f"objective: expected a finite number, got {got} for the plan with {plan}")


def _number(value: Any) -> float | None:
    """Return the value as a float; None where it is no number."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # tensors of several numbers raise the last one
        return None
