"""The policy gradient: its slope by hand, and what keeps it from settling early."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.dnq import reinforce
from octavo.dnq.policy import Policy
from octavo.dnq.reinforce import Reinforce, imitate, learn, surrogate

ALLOWED = torch.arange(4) < torch.tensor([[4], [1], [2], [3]])


def policy_of(allowed: Tensor = ALLOWED, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Policy(torch.randn(len(allowed), 3), allowed)


# The gradient: two layers of 3 and 2 options, so that every sample can be enumerated.

TWO = torch.tensor([[True, True, True], [True, True, False]])
SAMPLES = [(a, b) for a in range(3) for b in range(2)]


def small(seed: int = 0) -> Policy:
    """A policy that is not uniform, in double precision."""
    policy = policy_of(TWO, seed).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(
                0.3
                * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(seed + 1)
                ).double()
            )
    return policy


def chances(policy: Policy) -> dict[tuple[int, int], float]:
    with torch.no_grad():
        p = policy().exp()
    return {(a, b): float(p[0, a] * p[1, b]) for a, b in SAMPLES}


def expected(policy: Policy, reward: dict[tuple[int, int], float]) -> float:
    return sum(p * reward[sample] for sample, p in chances(policy).items())


def by_finite_differences(
    policy: Policy, value: Callable[[], float], step: float = 1e-5
) -> list[float]:
    """The slope of ``value`` in some of each parameter's numbers."""
    slopes = []
    for parameter in policy.parameters():
        numbers = parameter.data.view(-1)
        for at in range(0, len(numbers), max(1, len(numbers) // 4)):
            before = float(numbers[at])
            numbers[at] = before + step
            above = value()
            numbers[at] = before - step
            slopes.append((above - value()) / (2 * step))
            numbers[at] = before
    return slopes


def by_autograd(policy: Policy, value: Tensor) -> list[float]:
    slopes: list[float] = []
    for gradient in torch.autograd.grad(value, list(policy.parameters())):
        flat = gradient.flatten()
        slopes += [float(flat[at]) for at in range(0, len(flat), max(1, len(flat) // 4))]
    return slopes


@pytest.mark.parametrize("size", [2, 3])
def test_the_policy_gradient_is_the_slope_of_the_expected_reward(size: int) -> None:
    """Over all batches, each by its chance; a batch's own deviation, by which it is divided, is
    multiplied back."""
    policy, drawn = small(), np.random.default_rng(0)
    reward = {sample: float(drawn.normal()) for sample in SAMPLES}
    p, log_p, total = chances(policy), policy(), torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(SAMPLES, repeat=size):
        rewards = torch.tensor([reward[sample] for sample in batch], dtype=torch.float64)
        chance = math.prod(p[sample] for sample in batch)
        total = total + chance * rewards.std().clamp(min=1e-9) * surrogate(
            log_p, torch.tensor(batch), rewards, 0.0
        )
    slopes = by_finite_differences(policy, lambda: expected(policy, reward))
    assert max(map(abs, slopes)) > 0.01
    assert by_autograd(policy, total) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_dividing_by_the_deviation_keeps_the_direction_where_it_is_the_same_in_all_batches() -> (
    None
):
    """Rewards of 0 and 5 in pairs: their deviation is 5 / sqrt 2, or the pair teaches nothing."""
    policy = small(1)
    reward = {sample: 5.0 * (sum(sample) % 2) for sample in SAMPLES}
    p, log_p, total = chances(policy), policy(), torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(SAMPLES, repeat=2):
        rewards = torch.tensor([reward[sample] for sample in batch], dtype=torch.float64)
        total = total + p[batch[0]] * p[batch[1]] * surrogate(
            log_p, torch.tensor(batch), rewards, 0.0
        )
    slopes = by_finite_differences(policy, lambda: expected(policy, reward) * math.sqrt(2) / 5)
    assert by_autograd(policy, total) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_the_bonus_is_the_slope_of_the_entropy() -> None:
    def entropy() -> float:
        with torch.no_grad():
            rows = policy().exp().tolist()
        return float(sum(-q * math.log(q) for row in rows for q in row if q) / 2)

    policy = small(2)
    alike = torch.ones(3, dtype=torch.float64)
    value = surrogate(policy(), torch.tensor([(0, 0), (1, 1), (2, 0)]), alike, 0.7)
    slopes = by_finite_differences(policy, lambda: 0.7 * entropy())
    assert max(map(abs, slopes)) > 0.01
    assert by_autograd(policy, value) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_one_sample_alone_teaches_nothing_but_the_bonus() -> None:
    policy = small(3)
    value = surrogate(policy(), torch.tensor([(1, 1)]), torch.tensor([7.0]), 0.0)
    slopes = by_autograd(policy, value)
    assert slopes == pytest.approx([0.0] * len(slopes))


# Imitation, and learning.


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_imitation_reaches_about_the_confidence_and_shares_out_the_rest(confidence: float) -> None:
    policy, indices = policy_of(), (3, 0, 1, 0)
    imitate(policy, indices, Reinforce(confidence=confidence))
    p = policy().exp().detach()
    for row, allowed, wanted in zip(p, ALLOWED, indices, strict=True):
        rest = [at for at in allowed.nonzero().flatten().tolist() if at != wanted]
        assert float(row[wanted]) == pytest.approx(confidence if rest else 1.0, abs=0.02)
        assert [float(row[at]) for at in rest] == pytest.approx(
            [(1 - confidence) / max(1, len(rest))] * len(rest), abs=0.02
        )


def test_learning_raises_what_pays_until_the_evaluations_are_spent() -> None:
    policy, left, entropies = policy_of(TWO), [400], list[float]()

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        assert sampled.shape == (8, 2)
        left[0] -= min(left[0], 8)
        with torch.no_grad():
            entropies.append(float(-(policy() * policy().exp()).sum()))
        return sampled, (sampled == torch.tensor([1, 0])).float().sum(1)

    learn(
        policy,
        Reinforce(learning_rate=0.05),
        torch.Generator().manual_seed(0),
        rewards,
        lambda: left[0],
    )
    assert left == [0]
    assert len(entropies) == 50
    assert entropies[0] > 1.7
    assert entropies[-1] < 0.7
    p = policy().exp().detach()
    assert float(p[0, 1] * p[1, 0]) > 0.9
    assert float(p[1, 2]) == 0.0


def test_learning_ends_where_nothing_new_is_proposed() -> None:
    calls = []

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(sampled))
        return sampled, torch.zeros(len(sampled))

    learn(
        policy_of(TWO),
        Reinforce(patience=7),
        torch.Generator().manual_seed(0),
        rewards,
        lambda: 100,
    )
    assert calls == [8] * 7


def test_what_could_not_be_scored_any_more_is_not_learned_from() -> None:
    policy, left = policy_of(TWO), [3]

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        left[0] = 0
        return sampled, torch.tensor([1.0, 2.0, 3.0] + [-math.inf] * 5)

    learn(policy, Reinforce(), torch.Generator().manual_seed(0), rewards, lambda: left[0])
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())


def collapsed(allowed: Tensor) -> Policy:
    """A policy that is certain of the first option of every layer."""
    policy = policy_of(allowed)
    with torch.no_grad():
        policy.bias[:, 0] = 1e4
    return policy


@pytest.mark.parametrize("explore", [0.0, 0.5, 1.5, 4.0, 100.0])
def test_exploring_mixes_in_even_probabilities_of_what_is_allowed(explore: float) -> None:
    mixed = reinforce._exploring(collapsed(ALLOWED), explore).exp().detach()
    assert mixed.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert float(mixed[~ALLOWED].max()) < 1e-29
    share = min(explore / 4, 1)
    for row, allowed in zip(mixed, ALLOWED, strict=True):
        count = int(allowed.sum())
        assert row[:count].tolist() == pytest.approx(
            [1 - share + share / count] + [share / count] * (count - 1)
        )


def spent(settings: Reinforce, evaluations: int) -> int:
    """How many choices a policy tries that has collapsed on the best of 4,096."""
    seen = set[tuple[int, ...]]()

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        seen.update([tuple(row) for row in sampled.tolist()])
        return sampled, -sampled.sum(1).float()

    policy = collapsed(torch.ones(6, 4, dtype=torch.bool))
    learn(
        policy,
        settings,
        torch.Generator().manual_seed(0),
        rewards,
        lambda: max(0, evaluations - len(seen)),
    )
    return len(seen)


def test_a_collapsed_policy_spends_its_evaluations_all_the_same() -> None:
    assert spent(Reinforce(), 300) >= 300
    assert spent(Reinforce(explore=0.01), 50) >= 50  # the less comes of it, the more it explores
    assert spent(Reinforce(explore=0.0, patience=5), 300) == 1


def test_the_best_choice_so_far_takes_part_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, sampled_rows, left = list[tuple[Tensor, Tensor]](), list[list[int]](), [200]

    def climbed(log_probabilities: Tensor, tried: Tensor, reward: Tensor, entropy: float) -> Tensor:
        batches.append((tried, reward))
        return surrogate(log_probabilities, tried, reward, entropy)

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        sampled_rows.extend(sampled.tolist())
        left[0] -= 8
        return sampled, worth[tuple(sampled.T)]

    monkeypatch.setattr(reinforce, "surrogate", climbed)
    worth = torch.rand(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    learn(
        policy_of(torch.ones(4, 4, dtype=torch.bool)),
        Reinforce(),
        torch.Generator().manual_seed(0),
        rewards,
        lambda: left[0],
    )
    assert [len(tried) for tried, _ in batches] == [8] + 24 * [9]
    for count, (tried, reward) in enumerate(batches, 1):
        best = max(sampled_rows[: 8 * count], key=lambda row: float(worth[tuple(row)]))
        assert best in tried.tolist()
        assert torch.equal(reward, worth[tuple(tried.T)])
    firsts = [tuple(tried[0].tolist()) for tried, _ in batches[1:]]
    assert 1 < len(set(firsts)) < len(firsts)  # it changes, and is kept
