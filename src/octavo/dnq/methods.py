"""The methods of the search, by name: the policy, its rivals, and those that are registered."""

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

from octavo.dnq.agent import dnq
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.front import Estimate
from octavo.dnq.rivals.evolution import evolution
from octavo.dnq.rivals.exact import exact
from octavo.dnq.rivals.greedy import greedy
from octavo.dnq.rivals.optuna_methods import cmaes, tpe
from octavo.dnq.rivals.random_search import random_search
from octavo.dnq.rivals.uniform import uniform
from octavo.dnq.settings import METHODS
from octavo.errors import OctavoError, PlanError, install, nearest

__all__ = ["SearchMethod", "measures_layers", "method_of", "register_method"]

# A method may return choices that it proposes for other budgets than that of the search.
SearchMethod: TypeAlias = Callable[[Evaluator], tuple[Estimate, ...] | None]

_METHODS: dict[str, SearchMethod] = {
    "dnq": dnq,
    "exact": exact,
    "greedy": greedy,
    "tpe": tpe,
    "cmaes": cmaes,
    "evolution": evolution,
    "random": random_search,
    "uniform": uniform,
}
PACKAGES = {"tpe": ("optuna",), "cmaes": ("optuna", "cmaes")}  # of the extra ``search``


def register_method(name: str, method: SearchMethod) -> None:
    """Make ``search(..., method=name)`` call a method of your own.

    The best of all choices that it measures are finalists of the search. A task's file may register
    methods, and a recipe or the command line may name them.

    Args:
        name: a name that no other method has. A function that is defined anew, in a file that is
            loaded a second time, replaces the one of before.
        method: a function that measures choices by ``evaluator.rewards(choices)`` while
            ``evaluator.left`` is not 0; ``evaluator.space`` has the layers, their actions, what
            these cost and the limit.

    Raises:
        PlanError: there is a method of that name.

    """
    known = _METHODS.get(name)
    if known is not None and _origin(known) != _origin(method):
        raise PlanError(f"method {name}: expected a new name, there is a method of that name")
    _METHODS[name] = method


def measures_layers(name: str) -> bool:
    """Tell if a method of octavo's own measures each layer alone before anything else."""
    return name in METHODS and name not in ("random", "uniform")


def method_of(name: str) -> SearchMethod:
    """Return the method of a name.

    Raises:
        PlanError: there is none; the message says those that there are.
        OctavoError: the packages that the method needs are missing; the message says how to install
            them.

    """
    if name not in _METHODS:
        known = ", ".join(_METHODS)
        near = nearest(name, _METHODS, only_alike=True)
        raise PlanError(f"method: expected one of {known}, got {name!r}{near}")
    for package in PACKAGES.get(name, ()):
        _require(package, name)
    return _METHODS[name]


def _require(package: str, name: str) -> None:
    """Raise OctavoError unless a package can be imported."""
    try:
        import_module(package)
    except ImportError as error:
        message = f"method {name}: needs {package}: {install('search')}"
        raise OctavoError(message) from error


def _origin(method: SearchMethod) -> tuple[str | None, str]:
    """Return the module and the name of a method; two loads of one file have the same."""
    return getattr(method, "__module__", None), getattr(method, "__qualname__", repr(method))
