"""The policy gradient against the enumerated gradient of the expected reward."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.dnq.distribution import WithinBudget
from octavo.dnq.policy import Policy
from octavo.dnq.reinforce import Learner, Reinforce, surrogate
from octavo.dnq.space import Choice

# Three layers, 3 * 2 * 3 choices; the lower budget allows 9 of them, the higher one 14.

COSTS = np.array([[1.0, 2, 3], [2, 4, math.nan], [1, 3, 5]])
LIMITS = torch.tensor([9.05, 7.05], dtype=torch.float64)
CHOICES: tuple[Choice, ...] = tuple(itertools.product(range(3), range(2), range(3)))


def small(seed: int = 0) -> Policy:
    """A policy that is not even."""
    policy = Policy(COSTS, float(LIMITS.max()))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return policy


def rewards_of(seed: int) -> dict[Choice, float]:
    drawn = np.random.default_rng(seed).normal(size=len(CHOICES))
    return dict(zip(CHOICES, drawn.tolist(), strict=True))


def enumerated(within: WithinBudget) -> Tensor:
    """The log probabilities of all choices, (budgets, choices)."""
    return within.log_probability(torch.tensor(CHOICES).expand(len(LIMITS), -1, -1))


def gradient_of(policy: Policy, value: Tensor) -> list[float]:
    gradients = torch.autograd.grad(value, list(policy.parameters()))
    return [float(number) for gradient in gradients for number in gradient.flatten()]


def expected_reward(policy: Policy, reward: dict[Choice, float]) -> Tensor:
    """The mean over the budgets, as a function of the policy's parameters."""
    probability = enumerated(policy(LIMITS)).exp()
    rewards = torch.tensor([reward[choice] for choice in CHOICES], dtype=torch.float64)
    return (probability @ rewards).mean()


def batches_of(policy: Policy, size: int) -> Iterator[tuple[int, float, list[Choice]]]:
    """The batches that each budget can give: the budget, the probability, the choices."""
    with torch.no_grad():
        probability = enumerated(policy(LIMITS)).exp()
    for budget, row in enumerate(probability.tolist()):
        possible = [(p, choice) for p, choice in zip(row, CHOICES, strict=True) if p]
        assert sum(p for p, _ in possible) == pytest.approx(1)
        for batch in itertools.product(possible, repeat=size):
            yield budget, math.prod(p for p, _ in batch), [choice for _, choice in batch]


def expected_surrogate(
    policy: Policy, reward: dict[Choice, float], size: int, entropy: float = 0.0
) -> Tensor:
    """The mean of the surrogate over all batches, which are detached as the learner's are."""
    log_p = enumerated(policy(LIMITS))
    at = {choice: index for index, choice in enumerate(CHOICES)}
    total = torch.zeros((), dtype=torch.float64)
    for budget, probability, batch in batches_of(policy, size):
        rewards = torch.tensor([[reward[choice] for choice in batch]], dtype=torch.float64)
        own = log_p[budget, [at[choice] for choice in batch]].unsqueeze(0)
        total = total + probability * surrogate(own, rewards, entropy)
    return total / len(LIMITS)


@pytest.mark.parametrize(("size", "seed"), [(2, 0), (2, 1), (3, 2)])
def test_the_policy_gradient_is_that_of_the_expected_reward(size: int, seed: int) -> None:
    """Over all batches under two budgets."""
    policy = small(seed)
    reward = rewards_of(seed)
    expected = gradient_of(policy, expected_reward(policy, reward))
    assert max(map(abs, expected)) > 0.05
    computed = gradient_of(policy, expected_surrogate(policy, reward, size))
    assert computed == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_bonus_is_the_gradient_of_the_entropy() -> None:
    policy = small(5)
    reward = dict.fromkeys(CHOICES, 0.5)
    log_p = enumerated(policy(LIMITS))
    plogp = log_p.exp() * log_p.clamp(min=-1e9)
    expected = gradient_of(policy, -0.7 * plogp.sum(1).mean())
    computed = gradient_of(policy, expected_surrogate(policy, reward, 2, 0.7))
    assert max(map(abs, expected)) > 0.05
    assert computed == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_rewards_that_are_all_alike_teach_nothing() -> None:
    policy = small(6)
    log_probability = policy(LIMITS).log_probability(torch.tensor([[[0, 0, 0], [1, 0, 0]]] * 2))
    value = surrogate(log_probability, torch.full((2, 2), 0.917, dtype=torch.float64), 0.0)
    gradient = gradient_of(policy, value)
    assert gradient == [0.0] * len(gradient)


# The learner.

NEAR = torch.tensor([7.05], dtype=torch.float64)


def learned(
    settings: Reinforce, steps: int, *, sign: float = 1.0, limit: float = float(NEAR)
) -> tuple[Policy, list[float]]:
    """A policy after so many steps towards the choice (1, 0, 1), and its entropies."""
    policy = Policy(COSTS, limit)
    learner = Learner(policy, settings)
    generator = torch.Generator().manual_seed(0)
    entropies = []
    for step in range(steps):
        within = policy(NEAR)
        choices = within.sample(settings.batch, generator)
        rewards = sign * (choices == torch.tensor([1, 0, 1])).double().sum(2)
        learner.step(within, choices, rewards, step / steps)
        entropies.append(float(policy(NEAR).entropy()))
    return policy, entropies


def probability_of_the_best(policy: Policy) -> float:
    with torch.no_grad():
        return float(policy(NEAR).log_probability(torch.tensor([[[1, 0, 1]]])).exp())


def test_learning_raises_what_pays() -> None:
    settings = Reinforce(entropy=(2.0, 0.1), learning_rate=0.05)
    policy, _ = learned(settings, 200)
    assert probability_of_the_best(Policy(COSTS, float(NEAR))) < 0.35
    assert probability_of_the_best(policy) > 0.8
    flipped, _ = learned(settings, 200, sign=-1.0)
    assert probability_of_the_best(flipped) < 0.05


def test_a_learning_rate_of_nothing_changes_nothing() -> None:
    policy, entropies = learned(Reinforce(learning_rate=0.0), 20)
    assert not any(bool(parameter.any()) for parameter in policy.parameters())
    assert len(set(entropies)) == 1


def parameters_after(*rewards: float, steps: int = 1) -> list[Tensor]:
    """The parameters of a policy after batches of two choices with these rewards."""
    policy = small(7)
    learner = Learner(policy, Reinforce(entropy=(0.0, 0.0)))
    choices = torch.tensor([[[1, 0, 1], [0, 0, 1]]])
    for _ in range(steps):
        learner.step(policy(NEAR), choices, torch.tensor([rewards], dtype=torch.float64), 0.0)
    return [parameter.detach().clone() for parameter in policy.parameters()]


def test_the_first_batch_gives_the_unit_of_rewards_and_teaches_nothing() -> None:
    before = list(small(7).parameters())
    assert all(map(torch.equal, parameters_after(0.2, 0.7), before))
    assert not all(map(torch.equal, parameters_after(0.2, 0.7, steps=2), before))


def test_the_unit_of_rewards_does_not_matter() -> None:
    """Beside the entropy bonus, which has a unit of its own."""
    once = parameters_after(0.2, 0.7, steps=8)
    scaled = parameters_after(0.2e-3, 0.7e-3, steps=8)
    assert all(torch.allclose(*pair, rtol=1e-6) for pair in zip(once, scaled, strict=True))


def test_the_entropy_follows_its_target() -> None:
    """The same rewards, and targets that are high, falling and low.

    In a batch of few the choices may be all alike by chance, and the unit of rewards then shrinks.
    """
    ends = []
    for target in ((2.8, 2.8), (2.8, 0.3), (0.3, 0.3)):
        _, entropies = learned(Reinforce(entropy=target, batch=16), 600, limit=math.inf)
        assert all(map(math.isfinite, entropies))
        ends.append(sum(entropies[-100:]) / 100)
    assert ends[0] > ends[1] + 0.3
    assert ends[1] > ends[2] + 0.05
    assert ends[2] < 1
