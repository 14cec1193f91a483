"""Proposals are near what they start from, within the budget, and the best that the estimate knows
of."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.dnq.prices import within
from octavo.dnq.projection import project as project_in
from octavo.dnq.rivals.proposals import proposals
from octavo.dnq.space import Action, Choice, Space
from octavo.plan import Budget

LAYERS = 12
ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))
SPACE = within(
    Space(tuple("abcdefghijkl"), (ACTIONS,) * 11 + (ACTIONS[2:3],), (10,) * LAYERS, (1,) * LAYERS),
    Budget(average_bits=3),
)
START = (1,) * 10 + (0, 0)
LOSSES = np.zeros((LAYERS, 4)) - np.arange(4)


def project(choice: Choice) -> Choice:
    return project_in(SPACE, choice, LOSSES)


def rugged(choices: Sequence[Choice]) -> Tensor:
    """Rewards in which neighbouring layers matter together; the best choices have high bits at even
    places."""
    rewards = []
    for choice in choices:
        bits = [action.width.bits for action in SPACE.chosen(choice)]
        pairs = enumerate(itertools.pairwise(bits))
        rewards.append(-sum((a - b - 2 * (-1) ** at) ** 2 for at, (a, b) in pairs))
    return torch.tensor(rewards)


def estimated(choices: Sequence[Choice]) -> list[float]:
    return rugged(choices).tolist()


def drawn(seed: int, start: Sequence[Choice] = (START,)) -> list[Choice]:
    return list(proposals(SPACE, project, estimated, start, torch.Generator().manual_seed(seed)))[
        -1
    ]


def test_all_are_within_the_budget_distinct_and_the_best_come_first() -> None:
    found = drawn(0)
    assert len(found) == len(set(found)) > 100
    assert all(SPACE.fits(choice) and choice[-1] == 0 for choice in found)
    rewards = rugged(found).tolist()
    assert rewards == sorted(rewards, reverse=True)


def test_they_climb_further_than_as_many_choices_drawn_around_the_start() -> None:
    generator, near = torch.Generator().manual_seed(1), list[Choice]()
    for _ in range(2000):
        changed = list(START)
        for layer in torch.randperm(LAYERS - 1, generator=generator)[:2].tolist():
            changed[layer] = int(torch.randint(4, (), generator=generator))
        near.append(project(tuple(changed)))
    assert float(rugged(drawn(0)[:1])) > float(rugged(near).max())
    assert float(rugged(drawn(0)[:1])) > float(rugged([START])) + 10


def test_each_round_begins_from_the_best_of_the_last_and_goes_further() -> None:
    rounds = list(proposals(SPACE, project, estimated, [START], torch.Generator().manual_seed(0)))
    tops = [float(rugged(found[:1])) for found in rounds]
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]
    moved = [
        min(sum(a != b for a, b in zip(choice, START, strict=True)) for choice in found[:8])
        for found in rounds
    ]
    assert moved[0] < moved[-1]
    for one, then in itertools.pairwise(rounds):
        assert set(one[:8]) <= set(then)


def test_a_start_that_is_the_best_stays_first_and_the_same_draws_give_the_same() -> None:
    best = drawn(0)[0]
    assert drawn(1, [best, START])[0] == best or float(rugged(drawn(1, [best, START])[:1])) > float(
        rugged([best])
    )
    assert drawn(2) == drawn(2)
    assert drawn(2) != drawn(3)


def test_no_choice_is_estimated_twice() -> None:
    asked = list[Choice]()

    def noted(choices: Sequence[Choice]) -> list[float]:
        asked.extend(choices)
        return estimated(choices)

    list(proposals(SPACE, project, noted, [START, START], torch.Generator().manual_seed(0)))
    assert len(asked) == len(set(asked)) > 500


def test_a_single_layer_without_a_choice() -> None:
    space = Space(("a",), (ACTIONS[2:3],), (10,), (1,))
    generator = torch.Generator().manual_seed(0)
    for found in proposals(
        space, lambda choice: choice, lambda choices: [0.0] * len(choices), [(0,)], generator
    ):
        assert found == [(0,)]
