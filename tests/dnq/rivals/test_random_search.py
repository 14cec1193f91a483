"""The random rival: every choice comes up, and the losses that it projects by fall."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals import random_search as module
from octavo.dnq.rivals.random_search import random_search
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.network.outputs import Part
from octavo.plan import Budget


class Flat:
    """Every choice is as good as every other."""

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        return [Measurement(0.0) for _ in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def space_of(texts: tuple[int | str, ...], budget: Budget) -> Space:
    actions = tuple(map(Action.parse, texts))
    return within(Space(("a", "b", "c"), (actions,) * 3, (10, 10, 10), (1, 1, 1)), budget)


def test_it_draws_every_choice_of_a_small_space_that_no_step_betters() -> None:
    space = space_of((2, 3, 4, 5), Budget(average_bits=3))
    evaluator = Evaluator(space, Flat(), Journal(None, space.actions, {}), 60)
    random_search(evaluator)
    tight = {c for c in itertools.product(range(4), repeat=3) if sum(c) == 3}
    assert {trial.choice for trial in evaluator.trials} == tight


@pytest.mark.parametrize(
    "texts", [(2, 3, 4, 5), (5, "apot5", 6, "apot6"), ("2x4", "3x4", "2x8", "3x8", "2x32")]
)
def test_losses_mostly_fall_with_the_bits(texts: tuple[int | str, ...]) -> None:
    space = space_of(texts, Budget(bit_ops=10**6))
    generator = torch.Generator().manual_seed(0)
    drawn = np.mean([module._random_losses(space, generator) for _ in range(300)], (0, 1))
    factors = [(action.width.bits, action.input_bits) for action in space.actions[0]]
    for (one, one_loss), (other, other_loss) in itertools.permutations(
        zip(factors, drawn, strict=True), 2
    ):
        if one[0] < other[0] and one[1] == other[1]:
            assert one_loss > other_loss
        if one[0] == other[0] and one[1] == 4 and other[1] == 8:
            assert one_loss > other_loss
