"""What the learned controller has to beat: other ways to choose bits, behind the same evaluator and its count of evaluations.

Each takes the bench where choices are scored and scores as many as it may; the best of all that were scored is its plan.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from octavo.errors import BudgetError, OctavoError
from octavo.search.bench import Bench, Spent
from octavo.search.space import Choice, Space

__all__ = ["RIVALS", "exact_choice", "uniform_choice"]


def uniform(bench: Bench) -> None:
    """The same bits in every layer that is not pinned: the most that the budget allows."""
    bench.score([uniform_choice(bench.space)])


def random(bench: Bench) -> None:
    """Choices drawn at random and brought within the budget."""
    loss = np.zeros((len(bench.space.names), 9))
    while bench.left:
        bench.score([bench.space.project(bench.draw(), loss) for _ in range(min(16, bench.left))])


def exact(bench: Bench) -> None:
    """The exact solution of the additive model: as if the losses of single layers added up."""
    bench.score([exact_choice(bench.space, bench.losses())])


def greedy(bench: Bench) -> None:
    """Most bits everywhere, then the cheapest steps down by single-layer losses; then the best exchanges of a bit, by measurement."""
    loss = bench.losses()
    best = bench.space.project(tuple(bits[-1] for bits in bench.space.options), loss)
    (score,) = bench.score([best])
    for other in itertools.chain.from_iterable(_exchanges(bench.space, loss, lambda: best) for _ in range(bench.left)):
        if not bench.left:
            return
        (found,) = bench.score([other])
        if found > score:
            best, score = other, found
