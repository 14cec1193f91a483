"""The learned policy finds what chance does not."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from octavo.dnq import agent
from octavo.dnq.agent import dnq
from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.reinforce import Reinforce
from octavo.dnq.rivals.exact import exact
from octavo.dnq.rivals.random_search import random_search
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.network.outputs import Part
from octavo.plan import Budget

# What it finds: 8 layers of 4 options, 65,536 choices, of which all that fit are enumerated.

LAYERS = 8
ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))
WEIGHTS = (100, 90, 110, 95, 105, 98, 102, 100)
EVERY = np.array(list(itertools.product(range(4), repeat=LAYERS)))
WITHIN = EVERY[((EVERY + 2) * np.array(WEIGHTS)).sum(1) <= 3 * sum(WEIGHTS)]
EVALUATIONS = 240


class Synthetic:
    """Losses of single layers that add up, and what pairs of coarse layers do to each other."""

    def __init__(self, seed: int, pairs: float) -> None:
        drawn = np.random.default_rng(seed)
        self.loss = (
            drawn.uniform(0.3, 3, (LAYERS, 1))
            * 3.0 ** -np.arange(9)[None]
            * drawn.uniform(0.7, 1.4, (LAYERS, 9))
        )[:, 2:6]
        self.coarse = np.sqrt(self.loss)
        self.pairs = np.triu(drawn.normal(0, pairs, (LAYERS, LAYERS)), 1)

    def lost(self, choices: np.ndarray) -> np.ndarray:
        """Of whole choices, (choices, layers)."""
        at = np.arange(LAYERS)
        coarse = self.coarse[at, choices]
        return np.asarray(
            self.loss[at, choices].sum(1) + np.einsum("ni,nj,ij->n", coarse, coarse, self.pairs)
        )

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        found = []
        for choice in choices:
            coarse = np.array(
                [0.0 if own is None else self.coarse[at, own] for at, own in enumerate(choice)]
            )
            single = sum(
                0.0 if own is None else float(self.loss[at, own]) for at, own in enumerate(choice)
            )
            found.append(Measurement(-single - float(coarse @ self.pairs @ coarse)))
        return found

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def evaluator_of(environment: Synthetic, evaluations: int, seed: int) -> Evaluator:
    options = (ACTIONS,) * LAYERS
    macs = (1,) * LAYERS
    space = within(Space(tuple("abcdefgh"), options, WEIGHTS, macs), Budget(average_bits=3))
    return Evaluator(space, environment, Journal(None, options, {}), evaluations, seed=seed)


def gap_of(method: Callable[[Evaluator], None], environment: Synthetic, seed: int = 0) -> float:
    """How much more the method's choice loses than the best within the budget, in units of what a
    middling one does."""
    evaluator = evaluator_of(environment, EVALUATIONS, seed)
    method(evaluator)
    lost = environment.lost(WITHIN)
    least = float(lost.min())
    return (-evaluator.best.objective - least) / (float(np.median(lost)) - least)


def warm(evaluator: Evaluator) -> None:
    dnq(evaluator, settings=Reinforce(patience=5))


def cold(evaluator: Evaluator) -> None:
    dnq(evaluator, warm=False, settings=Reinforce(patience=5))


@pytest.mark.parametrize("start", [warm, cold])
def test_where_losses_add_up_it_finds_the_best_choice_and_chance_does_not(
    start: Callable[[Evaluator], None],
) -> None:
    environment = Synthetic(0, 0.0)
    assert gap_of(start, environment) == pytest.approx(0, abs=1e-9)
    assert gap_of(random_search, environment) > 0.001


@pytest.mark.parametrize(("start", "seed"), [(warm, 0), (cold, 0), (cold, 1)])
def test_where_they_do_not_it_comes_closer_than_chance_and_than_the_additive_model(
    start: Callable[[Evaluator], None], seed: int
) -> None:
    environment = Synthetic(seed, 0.5)
    found = gap_of(start, environment, seed)
    assert 0 <= found + 1e-9 < 0.06
    assert found < gap_of(random_search, environment, seed)
    assert found < gap_of(exact, environment, seed) / 2


def test_the_same_seed_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "IMAGINED", 400)  # it practises less

    def trials(seed: int) -> list[Choice]:
        evaluator = evaluator_of(Synthetic(0, 0.5), 60, seed)
        warm(evaluator)
        return [trial.choice for trial in evaluator.trials]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = trials(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert trials(4) == first
    assert trials(5) != first
