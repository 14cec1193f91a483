"""What the learned controller finds that chance does not."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment, Partial
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.reinforce import Reinforce
from octavo.dnq.rivals.methods import RIVALS
from octavo.dnq.space import Choice, Space
from octavo.plan import Budget

# What it finds: 8 layers of 4 options, 65,536 choices, of which all that fit are enumerated.

LAYERS, BITS = 8, (2, 3, 4, 5)
WEIGHTS = (100, 90, 110, 95, 105, 98, 102, 100)
EVERY = np.array(list(itertools.product(BITS, repeat=LAYERS)))
WITHIN = EVERY[(EVERY * np.array(WEIGHTS)).sum(1) <= 3 * sum(WEIGHTS)]
EVALUATIONS = 240


class Synthetic(Environment):
    """Losses of single layers that add up, and what pairs of coarse layers do to each other."""

    def __init__(self, seed: int, pairs: float) -> None:
        drawn = np.random.default_rng(seed)
        self.loss = (
            drawn.uniform(0.3, 3, (LAYERS, 1))
            * 3.0 ** -np.arange(9)[None]
            * drawn.uniform(0.7, 1.4, (LAYERS, 9))
        )
        self.coarse = np.sqrt(self.loss)
        self.pairs = np.triu(drawn.normal(0, pairs, (LAYERS, LAYERS)), 1)

    def lost(self, choices: np.ndarray) -> np.ndarray:
        """Of whole choices, (choices, layers)."""
        at = np.arange(LAYERS)
        coarse = self.coarse[at, choices]
        return np.asarray(
            self.loss[at, choices].sum(1) + np.einsum("ni,nj,ij->n", coarse, coarse, self.pairs)
        )

    def output_sum(self) -> None:
        return None

    def scores(self, choices: Sequence[Partial]) -> list[float]:
        found = []
        for choice in choices:
            coarse = np.array(
                [0.0 if bits is None else self.coarse[at, bits] for at, bits in enumerate(choice)]
            )
            single = sum(
                0.0 if bits is None else float(self.loss[at, bits])
                for at, bits in enumerate(choice)
            )
            found.append(-single - float(coarse @ self.pairs @ coarse))
        return found

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def gap_of(method: Callable[[Evaluator], None], environment: Synthetic, seed: int = 0) -> float:
    """How much more the method's choice loses than the best within the budget, in units of what a
    middling one does."""
    space = Space(
        tuple("abcdefgh"), (BITS,) * LAYERS, WEIGHTS, (1,) * LAYERS, Budget(average_bits=3)
    )
    bench = Evaluator(space, environment, Journal(None, {}), EVALUATIONS, seed=seed)
    method(bench)
    lost = environment.lost(WITHIN)
    return (-bench.best.score - float(lost.min())) / (float(np.median(lost)) - float(lost.min()))


def warm(bench: Evaluator) -> None:
    dnq(bench, settings=Reinforce(patience=5))


def cold(bench: Evaluator) -> None:
    dnq(bench, warm=False, settings=Reinforce(patience=5))


@pytest.mark.parametrize("start", [warm, cold])
def test_where_losses_add_up_it_finds_the_best_choice_and_chance_does_not(
    start: Callable[[Evaluator], None],
) -> None:
    environment = Synthetic(0, 0.0)
    assert gap_of(start, environment) == pytest.approx(0, abs=1e-9)
    assert gap_of(RIVALS["random"], environment) > 0.001


@pytest.mark.parametrize(("start", "seed"), [(warm, 0), (cold, 0), (cold, 1)])
def test_where_they_do_not_it_comes_closer_than_chance_and_than_the_additive_model(
    start: Callable[[Evaluator], None], seed: int
) -> None:
    environment = Synthetic(seed, 0.5)
    found = gap_of(start, environment, seed)
    assert 0 <= found + 1e-9 < 0.06
    assert found < gap_of(RIVALS["random"], environment, seed)
    assert found < gap_of(RIVALS["exact"], environment, seed) / 2


def test_the_same_seed_learns_the_same() -> None:
    def trials(seed: int) -> list[Choice]:
        space = Space(
            tuple("abcdefgh"), (BITS,) * LAYERS, WEIGHTS, (1,) * LAYERS, Budget(average_bits=3)
        )
        bench = Evaluator(space, Synthetic(0, 0.5), Journal(None, {}), 60, seed=seed)
        warm(bench)
        return [trial.choice for trial in bench.trials]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = trials(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert trials(4) == first
    assert trials(5) != first
