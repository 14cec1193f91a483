"""The rivals of Optuna: ``tpe``, a tree-structured Parzen estimator, and ``cmaes``, CMA-ES."""

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.projection import project

__all__ = ["cmaes", "tpe"]

# Proposals in a row, none of them new, after which the samplers end: a small space has no more.
PATIENCE = 200


def tpe(evaluator: Evaluator) -> None:
    """Measure what the tree-structured Parzen estimator proposes."""
    _optimize(evaluator, lambda samplers, seed: samplers.TPESampler(seed=seed))


def cmaes(evaluator: Evaluator) -> None:
    """Measure what CMA-ES proposes, over the actions' indices as numbers."""
    _optimize(
        evaluator,
        lambda samplers, seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    )


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Let Optuna log no more than warnings for a while."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _optimize(evaluator: Evaluator, sampler_of: Callable[[Any, int], Any]) -> None:
    """Measure what a sampler proposes."""
    optuna: Any = import_module("optuna")  # only where a method needs it
    seed = int(torch.randint(1 << 31, (), generator=evaluator.generator))
    sampler = sampler_of(optuna.samplers, seed)
    with _quiet(optuna.logging):
        _ask_and_tell(optuna.create_study(direction="maximize", sampler=sampler), evaluator)


def _ask_and_tell(study: Any, evaluator: Evaluator) -> None:
    """Measure what a study proposes, brought within the budget, and tell it the rewards."""
    space = evaluator.space
    losses = evaluator.losses()
    stale = 0
    while evaluator.left and stale < PATIENCE:
        before = evaluator.left
        proposal = study.ask()
        drawn = tuple(
            proposal.suggest_int(name, 0, len(actions) - 1)
            for name, actions in zip(space.names, space.actions, strict=True)
        )
        (reward,) = evaluator.rewards([project(space, drawn, losses)])
        study.tell(proposal, reward)
        stale = stale + 1 if evaluator.left == before else 0
