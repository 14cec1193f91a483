"""The exact rival: against brute force over every choice."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals.exact import exact, exact_choice, summed_loss
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.network.outputs import Part
from octavo.plan import Budget

ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))


class Additive:
    """Losses that add up; notes the whole choices that it is asked for."""

    def __init__(self, losses: np.ndarray) -> None:
        self.losses = losses
        self.whole: list[Partial] = []

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        self.whole += [choice for choice in choices if None not in choice]
        return [Measurement(-self._lost(choice)) for choice in choices]

    def _lost(self, choice: Partial) -> float:
        pairs = [(layer, at) for layer, at in enumerate(choice) if at is not None]
        return float(sum(self.losses[pair] for pair in pairs))

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def evaluator_of(space: Space, environment: Additive, trade_off: float = 0.0) -> Evaluator:
    journal = Journal(None, space.actions, {})
    return Evaluator(space, environment, journal, 100, trade_off=trade_off)


def every(space: Space) -> list[Choice]:
    choices = itertools.product(*(range(len(actions)) for actions in space.actions))
    return [choice for choice in choices if space.fits(choice)]


def losses_of(layers: int, seed: int, spread: float) -> np.ndarray:
    """Losses that mostly fall with the bits, over as many orders of magnitude as asked."""
    drawn = np.random.default_rng(seed)
    scale = 10.0 ** drawn.uniform(-spread, 0, (layers, 1))
    falling = 4.0 ** -np.arange(4)[None] * drawn.uniform(0.3, 3, (layers, 4))
    return np.asarray(scale * (falling - 0.001 * drawn.random((layers, 4))))


@pytest.mark.parametrize("spread", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_solution_is_that_of_brute_force(seed: int, spread: float) -> None:
    drawn = np.random.default_rng(100 + seed)
    weights = tuple(int(w) for w in drawn.integers(10, 10_000, 5))
    losses = losses_of(5, seed, spread)
    for average in (2.3, 3.1, 4.4):
        budget = Budget(average_bits=average)
        space = within(Space(tuple("abcde"), (ACTIONS,) * 5, weights, (1,) * 5), budget)
        found = exact_choice(evaluator_of(space, Additive(losses)), losses)
        least = min(summed_loss(losses, choice) for choice in every(space))
        assert space.fits(found)
        assert summed_loss(losses, found) <= least + 1e-9


@pytest.mark.parametrize("limit", [20, 60, 108])
def test_the_solution_is_that_of_brute_force_for_weights_and_inputs(limit: int) -> None:
    texts = [f"{w}x{a}" for w in (2, 3, 4) for a in (2, 4, 8)]
    actions = tuple(sorted(map(Action.parse, texts), key=lambda action: action.size))
    losses = np.random.default_rng(limit).random((3, len(actions)))
    budget = Budget(bit_ops=limit)
    space = within(Space(("a", "b", "c"), (actions,) * 3, (9, 9, 9), (1, 2, 1)), budget)
    found = exact_choice(evaluator_of(space, Additive(losses)), losses)
    least = min(summed_loss(losses, choice) for choice in every(space))
    assert space.fits(found)
    assert summed_loss(losses, found) == pytest.approx(least)


@pytest.mark.parametrize("seed", range(4))
def test_the_solution_is_that_of_brute_force_for_the_bytes_of_a_file(seed: int) -> None:
    """Costs that are no multiples of the weights, and need not rise with the bits."""
    drawn = np.random.default_rng(seed)
    codes = drawn.uniform(10, 1000, (4, 1)) * drawn.uniform(0.5, 3, (4, 4))
    sizes = FileSizes(codes, 321.5, 10**5)
    least = 321.5 + float(codes.min(1).sum())
    most = 321.5 + float(codes.max(1).sum())
    losses = losses_of(4, seed, 1)
    plain = Space(tuple("abcd"), (ACTIONS,) * 4, (10,) * 4, (1,) * 4)
    for share in (0.05, 0.4, 0.8):
        budget = Budget(bytes=math.ceil(least + share * (most - least)))
        space = within(plain, budget, sizes)
        found = exact_choice(evaluator_of(space, Additive(losses)), losses)
        assert space.fits(found)
        best = min(summed_loss(losses, choice) for choice in every(space))
        assert summed_loss(losses, found) == pytest.approx(best)


def test_it_keeps_pins_and_measures_one_whole_choice() -> None:
    options = (ACTIONS, (Action.parse(8),), ACTIONS)
    weights = (100, 37, 260)
    space = within(Space(("a", "b", "c"), options, weights, (1, 1, 1)), Budget(average_bits=3))
    losses = losses_of(3, 0, 0)
    environment = Additive(losses)
    evaluator = evaluator_of(space, environment)
    exact(evaluator)
    assert environment.whole == [evaluator.best.choice]
    assert evaluator.best.choice == min(every(space), key=lambda c: summed_loss(losses, c))


def test_under_a_trade_off_it_is_near_the_best_total_reward() -> None:
    space = Space(("a", "b", "c"), (ACTIONS,) * 3, (100, 37, 260), (1, 1, 1))
    losses = losses_of(3, 1, 0)
    evaluator = evaluator_of(space, Additive(losses), trade_off=0.3)
    found = exact_choice(evaluator, losses)
    rewards = [evaluator.reward(c, -summed_loss(losses, c)) for c in every(space)]
    assert evaluator.reward(found, -summed_loss(losses, found)) > max(rewards) - 0.02
