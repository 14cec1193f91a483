"""What the learned controller has to beat: other ways to choose bits, behind the same bench and its
count of evaluations.

Each is a function of the bench, and scores as many choices as it may; the best of all that it
scored is its plan.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.space import Choice, Space
from octavo.dnq.widths import Both, by_size, input_bits, weight_bits, width_index
from octavo.errors import OctavoError
from octavo.formats.width import FLOAT

__all__ = ["RIVALS", "exact_choice", "uniform_choice"]

BUDGETS = 24  # tried by the exact solution under a trade-off
# proposals in a row, none of them new, after which Optuna's samplers end: a small space has no more
PATIENCE = 200


def uniform(bench: Evaluator) -> None:
    """The same bits in every layer that is not pinned: the most that the budget allows."""
    bench.score([uniform_choice(bench.space)])


def random(bench: Evaluator) -> None:
    """Choices drawn at random and brought within the budget, at random too."""
    space, generator = bench.space, bench.generator
    for _ in range(100 * bench.left):  # a small space may have fewer choices than evaluations
        if not bench.left:
            return
        drawn = space.choice(
            [int(torch.randint(len(bits), (), generator=generator)) for bits in space.options]
        )
        bench.score([space.project(drawn, _random_losses(space, generator))])


def exact(bench: Evaluator) -> None:
    """The exact solution of the additive model: as if the losses of single layers added up."""
    bench.score([exact_choice(bench, bench.losses())])


def greedy(bench: Evaluator) -> None:
    """The cheapest steps down from most bits everywhere, by single-layer losses; then exchanges of
    bits, kept where they help.
    """
    loss = bench.losses()
    best = bench.space.project(tuple(bits[-1] for bits in bench.space.options), loss)
    (score,) = bench.rewards([best])
    improved = True
    while improved and bench.left:
        improved = False
        for other in _exchanges(bench.space, best, loss):
            (found,) = bench.rewards([other])
            if found > score:
                best, score, improved = other, found, True
                break


def tpe(bench: Evaluator) -> None:
    """Optuna's tree-structured Parzen estimator."""
    _optuna(bench, lambda optuna, seed: optuna.samplers.TPESampler(seed=seed))


def cmaes(bench: Evaluator) -> None:
    """Optuna's CMA-ES, over the options' indices as numbers."""
    _optuna(
        bench,
        lambda optuna, seed: optuna.samplers.CmaEsSampler(
            seed=seed, warn_independent_sampling=False
        ),
        "cmaes",
    )


RIVALS: dict[str, Callable[[Evaluator], None]] = {
    "exact": exact, "greedy": greedy, "tpe": tpe, "cmaes": cmaes, "random": random, "uniform": uniform,
}  # fmt: skip


def uniform_choice(space: Space, like: Choice | None = None) -> Choice:
    """The most uniform bits that fit, pins kept; without a budget the most that cost no more than
    ``like``.

    Of two grids at as many bits it is the sums of two powers.
    """
    most = space.price(like) if like and space.budget is None else math.inf
    everywhere = {bits for options in space.options for bits in options}
    if any(
        isinstance(bits, Both) for bits in everywhere
    ):  # the same bits of weights, and the same of all inputs not in float
        inputs = set(map(input_bits, everywhere)) - {FLOAT}
        everywhere = {
            Both(weights, own) for weights in map(weight_bits, everywhere) for own in inputs
        }
    for most_bits in sorted(everywhere, key=by_size, reverse=True):
        choice = tuple(_most(options, most_bits) for options in space.options)
        if space.fits(choice) and space.price(choice) <= most:
            return choice
    return tuple(options[0] for options in space.options)


def _most(options: Sequence[int], most: int) -> int:
    """The most of the options that is not above ``most``, in either of its parts where it has two;
    else the least.
    """
    if isinstance(most, Both):
        weights, inputs = (
            _most(sorted(map(part, options), key=by_size), part(most))
            for part in (weight_bits, input_bits)
        )
        return Both(weights, inputs)
    return max((b for b in options if by_size(b) <= by_size(most)), default=options[0], key=by_size)


def exact_choice(bench: Evaluator, loss: np.ndarray) -> Choice:
    """The choice of least total loss within the budget; under a trade-off, of the best total reward
    over a range of budgets.

    Args:
        bench: its space and its trade-off.
        loss: (layers, widths), of each layer alone.

    """
    space = bench.space
    if space.budget is not None:
        return _least_loss(space, loss, space.limit)
    low, high = (space.price(tuple(bits[end] for bits in space.options)) for end in (0, -1))
    found = [_least_loss(space, loss, float(limit)) for limit in np.linspace(low, high, BUDGETS)]
    return max(found, key=lambda choice: bench.reward(choice, -_summed(loss, choice)))


def _least_loss(space: Space, loss: np.ndarray, limit: float) -> Choice:
    """An integer programme, solved by HiGHS: one option a layer, the sum of their prices within
    ``limit``.
    """
    pairs = [(layer, bits) for layer, options in enumerate(space.options) for bits in options]
    cost = np.array([loss[layer, width_index(bits)] for layer, bits in pairs])
    price = np.array([space.prices[layer] * int(bits) for layer, bits in pairs])
    one_each = np.array(
        [[float(layer == row) for layer, _ in pairs] for row in range(len(space.names))]
    )
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(price[None] / limit, -np.inf, 1),
    ]  # tolerances are absolute
    scaled = cost / max(float(np.abs(cost).max()), 1e-30)
    found = milp(
        scaled, integrality=np.ones(len(pairs), int), bounds=Bounds(0, 1), constraints=constraints,
        options={"presolve": False},  # it may print to standard output
    )  # fmt: skip
    if found.x is None:
        raise OctavoError(
            f"the integer programme of {len(space.names)} layers was not solved: {found.message}"
        )
    chosen = tuple(bits for (_, bits), share in zip(pairs, found.x, strict=True) if share > 0.5)
    return space.project(chosen, loss)  # what the solver's tolerance let through


def _exchanges(space: Space, choice: Choice, loss: np.ndarray) -> Iterator[Choice]:
    """Choices with one layer a step up or down and the budget restored, the most promising by
    single-layer losses first.
    """
    others = []
    for layer, options in enumerate(space.options):
        for way in (-1, 1):
            at = options.index(choice[layer]) + way
            if 0 <= at < len(options):
                moved = (*choice[:layer], options[at], *choice[layer + 1 :])
                others.append(space.project(moved, loss, keep=layer))
    distinct = [other for other in dict.fromkeys(others) if other != choice]
    yield from sorted(distinct, key=lambda other: _summed(loss, other))


def _summed(loss: np.ndarray, choice: Choice) -> float:
    """The losses of a choice's layers, each alone."""
    return float(sum(loss[layer, width_index(bits)] for layer, bits in enumerate(choice)))


def _random_losses(space: Space, generator: torch.Generator) -> np.ndarray:
    """Losses that fall with the bits in random steps: what projects without knowing anything."""
    steps = torch.rand(len(space.names), 9, generator=generator, dtype=torch.float64).numpy()
    loss = -steps.cumsum(1)
    loss = np.concatenate(
        [loss, (loss + 2 * steps - 1)[:, 5:]], 1
    )  # the other grid is as likely better as worse
    if not isinstance(space.options[0][0], Both):
        return loss
    of_inputs = (
        -torch.rand(len(space.names), 9, generator=generator, dtype=torch.float64).numpy().cumsum(1)
    )
    return np.concatenate([loss + of_inputs[:, at : at + 1] for at in range(9)], 1)


def _optuna(bench: Evaluator, sampler: Callable[[Any, int], Any], *needs: str) -> None:
    seed = int(torch.randint(1 << 31, (), generator=bench.generator))
    try:
        optuna, *_ = [import_module(name) for name in ("optuna", *needs)]
    except ImportError as error:
        raise OctavoError(
            f"this method needs {error.name}: pip install 'octavo[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler(optuna, seed))
    space, loss, stale = bench.space, bench.losses(), 0
    while (before := bench.left) and stale < PATIENCE:
        trial = study.ask()
        at = [
            trial.suggest_int(name, 0, len(bits) - 1)
            for name, bits in zip(space.names, space.options, strict=True)
        ]
        choice = space.project(space.choice(at), loss)
        (score,) = bench.rewards([choice])
        study.tell(trial, score)
        stale = stale + 1 if bench.left == before else 0
