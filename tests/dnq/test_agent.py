"""The policy decides: what is measured it sampled, and it finds what nothing but learning finds."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.dnq import agent, reinforce
from octavo.dnq.agent import PROPOSED, dnq
from octavo.dnq.distribution import WithinBudget
from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.front import Estimate
from octavo.dnq.journal import Journal
from octavo.dnq.policy import Policy
from octavo.dnq.prices import within
from octavo.dnq.reinforce import Reinforce
from octavo.dnq.rivals.exact import exact_choice
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.network.outputs import Part
from octavo.plan import Budget

# The planted environment: 8 layers of 4 actions, 65,536 choices, of which 8,938 fit.

ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))
LAYERS = 8
ERRORS = (1.0, 0.5, 0.25, 0.125)  # of the output, by action
PAIRS = ((0, 1), (2, 3))  # at the least bits, their errors have opposite signs
WEIGHTED = (1.0, 1.0, 1.0, 1.0, 1.3, 1.3, 1.3, 1.3)  # errors of the other layers are larger
BEST = (0, 0, 0, 0, 2, 2, 2, 2)  # all pairs cancel, and the others have the bits
TRIALS = 125  # 33 of them measure layers alone


def loss_of(choice: Partial) -> float:
    """The squared errors of the layers, but those of a pair that cancel."""
    cancelled = {at for pair in PAIRS if choice[pair[0] : pair[1] + 1] == (0, 0) for at in pair}
    return sum(
        (weight * ERRORS[action]) ** 2
        for layer, (weight, action) in enumerate(zip(WEIGHTED, choice, strict=False))
        if action is not None and layer not in cancelled
    )


class Planted:
    """Measures the planted environment; its objective is not a function of outputs."""

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        return [Measurement(-loss_of(choice)) for choice in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def space_of(layers: int = LAYERS) -> Space:
    names = tuple("abcdefgh"[:layers])
    return Space(names, (ACTIONS,) * layers, (10,) * layers, (1,) * layers)


SPACE = within(space_of(), Budget(average_bits=3.02))


def evaluator_of(evaluations: int = TRIALS, seed: int = 0, space: Space = SPACE) -> Evaluator:
    return Evaluator(space, Planted(), Journal(None, space.actions, {}), evaluations, seed=seed)


def finds_the_best(seed: int, settings: Reinforce | None = None) -> bool:
    evaluator = evaluator_of(seed=seed)
    dnq(evaluator, settings=settings or Reinforce(patience=10))
    return evaluator.best.choice == BEST


def neighbours(choice: Choice) -> Iterator[Choice]:
    """The choices within the budget that one layer's change leads to, or an exchange: some layer
    has fewer bits and another one more."""
    for layer, action in itertools.product(range(LAYERS), range(4)):
        changed = (*choice[:layer], action, *choice[layer + 1 :])
        if SPACE.fits(changed):
            yield changed
        for other, up in itertools.product(range(LAYERS), range(4)):
            exchanged = (*changed[:other], up, *changed[other + 1 :])
            if action < choice[layer] and up > choice[other] and SPACE.fits(exchanged):
                yield exchanged


def climbed_from(choice: Choice) -> Choice:
    while True:
        best = min(neighbours(choice), key=loss_of)
        if loss_of(best) >= loss_of(choice) - 1e-12:
            return choice
        choice = best


def test_the_best_plan_is_not_the_exact_one_nor_does_hill_climbing_lead_there() -> None:
    every = itertools.product(range(4), repeat=LAYERS)
    losses = sorted((loss_of(choice), choice) for choice in every if SPACE.fits(choice))
    assert len(losses) == 8_938
    assert losses[0][1] == BEST
    assert losses[1][0] > 1.5 * losses[0][0]
    evaluator = evaluator_of()
    exact = exact_choice(evaluator, evaluator.losses())
    assert exact == climbed_from(exact) == (1,) * LAYERS
    assert loss_of(exact) > 6 * losses[0][0]


@pytest.mark.parametrize("seed", range(5))
def test_the_policy_finds_the_best_plan(seed: int) -> None:
    assert finds_the_best(seed)


# Tests of that test.


@pytest.mark.parametrize("seed", range(2))
def test_without_learning_it_does_not(seed: int) -> None:
    assert not finds_the_best(seed, Reinforce(patience=10, learning_rate=0.0))


@pytest.mark.parametrize("seed", range(2))
def test_with_the_sign_of_the_reward_flipped_it_does_not(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = reinforce.surrogate

    def flipped(log_probability: Tensor, rewards: Tensor, entropy_weight: float) -> Tensor:
        return true(log_probability, -rewards, entropy_weight)

    monkeypatch.setattr(reinforce, "surrogate", flipped)
    assert not finds_the_best(seed)


# What is measured.

BRIEF = Reinforce(before=5, practice=1, after=2, imagined=16, patience=20)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> set[Choice]:
    """The choices that the policy has sampled."""
    seen = set[Choice]()
    sample = WithinBudget.sample

    def spying(self: WithinBudget, count: int, generator: torch.Generator) -> Tensor:
        choices = sample(self, count, generator)
        seen.update(tuple(choice) for choice in choices.flatten(0, 1).tolist())
        return choices

    monkeypatch.setattr(WithinBudget, "sample", spying)
    return seen


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The policies that were made, the search's first."""
    made = list[Any]()

    class Noted(Policy):
        asked: list[float]

        def __init__(self, costs: np.ndarray, limit: float) -> None:
            super().__init__(costs, limit)
            self.asked = list[float]()
            made.append(self)

        def forward(self, limits: Tensor) -> WithinBudget:
            self.asked += limits.tolist()
            return super().forward(limits)

    monkeypatch.setattr(agent, "Policy", Noted)
    return made


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("budget", [Budget(average_bits=3), None])
def test_every_measured_plan_was_sampled_by_the_policy(
    budget: Budget | None,
    warm: bool,
    sampled: set[Choice],
) -> None:
    space = within(space_of(), budget)
    evaluator = evaluator_of(60, space=space)
    dnq(evaluator, warm=warm, settings=BRIEF)
    assert evaluator.left == 0
    assert len(evaluator.trials) == 60 - 33
    assert {trial.choice for trial in evaluator.trials} <= sampled
    assert all(space.fits(trial.choice) for trial in evaluator.trials)


def test_every_measured_plan_is_within_the_budget_and_each_is_learned_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned = list[tuple[list[Choice], list[float]]]()

    def step(
        _: object, within: WithinBudget, choices: Tensor, rewards: Tensor, progress: float
    ) -> None:
        assert bool(within.log_probability(choices).isfinite().all())
        assert 0 <= progress <= 1
        batch = [tuple(choice) for choice in choices[0].tolist()]
        learned.append((batch, rewards[0].tolist()))

    monkeypatch.setattr(reinforce.Learner, "step", step)
    evaluator = evaluator_of(33 + 12)
    dnq(evaluator, settings=Reinforce(before=0, practice=0, after=0))
    seen = {
        choice: reward
        for batch, rewards in learned
        for choice, reward in zip(batch, rewards, strict=True)
    }
    assert seen == {choice: -loss_of(choice) for choice in seen}
    assert set(seen) == {trial.choice for trial in evaluator.trials}
    assert all(len(batch) == 4 for batch, _ in learned)


def test_the_same_seed_gives_the_same_trials_and_estimates() -> None:
    def searched(seed: int) -> tuple[list[Choice], tuple[Estimate, ...]]:
        evaluator = evaluator_of(60, seed)
        estimates = dnq(evaluator, settings=BRIEF)
        return [trial.choice for trial in evaluator.trials], estimates

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = searched(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert searched(4) == first
    assert searched(5)[0] != first[0]


def test_a_learning_rate_of_nothing_leaves_the_policy_as_it_began(policies: list[Any]) -> None:
    def logits(learning_rate: float, evaluations: int) -> Tensor:
        policies.clear()
        settings = Reinforce(learning_rate=learning_rate, before=2, practice=1, after=2)
        dnq(evaluator_of(evaluations), settings=settings)
        assert len(policies) == 2  # the one that answers for other budgets, too
        begun: Tensor = policies[0].logits.detach()
        return begun

    begun = logits(0.0, 34)
    assert bool(begun.any())
    assert torch.equal(logits(0.0, 60), begun)
    assert not torch.equal(logits(0.05, 60), begun)
    assert not policies[0].slopes.isnan().any()


def test_it_ends_where_there_is_nothing_new() -> None:
    space = within(space_of(2), Budget(average_bits=3))
    evaluator = evaluator_of(1000, space=space)
    dnq(evaluator, settings=Reinforce(patience=5, before=5, after=1))
    fitting = [choice for choice in itertools.product(range(4), repeat=2) if space.fits(choice)]
    assert evaluator.left > 900
    assert {trial.choice for trial in evaluator.trials} <= set(fitting)


def test_a_search_with_a_budget_asks_for_that_alone(policies: list[Any]) -> None:
    dnq(evaluator_of(45), settings=BRIEF)
    assert set(policies[0].asked) == {SPACE.limit}


def test_a_search_of_the_whole_range_draws_its_budgets(policies: list[Any]) -> None:
    space = within(space_of(), None)
    evaluator = evaluator_of(33 + 40, space=space)
    dnq(evaluator, settings=BRIEF)
    (policy,) = policies
    assert len(set(policy.asked)) > 50
    low = space.cost(space.cheapest)
    high = space.cost(space.dearest)
    assert low <= min(policy.asked) < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < max(policy.asked) <= high
    costs = [space.cost(trial.choice) for trial in evaluator.trials]
    assert max(costs) - min(costs) > 0.4 * (high - low)


@pytest.mark.parametrize("budget", [Budget(average_bits=3), None])
def test_it_proposes_plans_for_budgets_over_the_whole_range(budget: Budget | None) -> None:
    space = within(space_of(), budget)
    evaluator = evaluator_of(60, space=space)
    estimates = dnq(evaluator, settings=BRIEF)
    costs = [space.cost(each.choice) for each in estimates]
    assert len(costs) > 10 * PROPOSED  # more than the most probable choice under each
    assert costs == sorted(costs)
    assert costs[0] == space.cost(space.cheapest)
    assert 0.9 * space.cost(space.dearest) < costs[-1] <= space.cost(space.dearest)
    assert all(math.isfinite(each.objective) for each in estimates)
    assert len({each.choice for each in estimates}) == len(estimates)
