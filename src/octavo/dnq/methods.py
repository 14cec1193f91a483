"""The methods of the search, by name: the policy, its rivals, and those that are registered."""

from collections.abc import Callable
from typing import TypeAlias

from octavo.dnq.agent import dnq
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.rivals.exact import exact
from octavo.dnq.rivals.greedy import greedy
from octavo.dnq.rivals.optuna_methods import cmaes, tpe
from octavo.dnq.rivals.random_search import random_search
from octavo.dnq.rivals.uniform import uniform
from octavo.errors import PlanError, nearest

__all__ = ["SearchMethod", "method_of", "register_method"]

SearchMethod: TypeAlias = Callable[[Evaluator], None]

_METHODS: dict[str, SearchMethod] = {
    "dnq": dnq,
    "exact": exact,
    "greedy": greedy,
    "tpe": tpe,
    "cmaes": cmaes,
    "random": random_search,
    "uniform": uniform,
}


def register_method(name: str, method: SearchMethod) -> None:
    """Make ``search(..., method=name)`` call a method of your own.

    The best of all choices that it measures is the plan of the search.

    Args:
        name: a name that no method has.
        method: a function that measures choices by ``evaluator.rewards(choices)`` while
            ``evaluator.left`` says that it may; ``evaluator.space`` says what there is to choose.

    Raises:
        PlanError: there is a method of that name.

    """
    if name in _METHODS:
        raise PlanError(f"method {name}: expected a new name, there is a method of that name")
    _METHODS[name] = method


def method_of(name: str) -> SearchMethod:
    """Return the method of a name.

    Raises:
        PlanError: there is none; the message says those that there are.

    """
    if name not in _METHODS:
        known = ", ".join(_METHODS)
        raise PlanError(f"method: expected one of {known}, got {name!r}{nearest(name, _METHODS)}")
    return _METHODS[name]
