"""The policy: where it starts, and how it answers to the budget."""

import itertools
import math

import numpy as np
import pytest
import torch

from octavo.dnq.policy import Policy

COSTS = np.array([[20.0, 30, 40, 50], [40, 60, 80, math.nan], [10, 15, 20, 25], [5, 6, 7, 8]])
LOSSES = np.array([[8.0, 3, 1, 0.5], [6, 2, 0.5, math.nan], [2, 1.5, 0.3, 0.2], [9, 4, 2, 1]])
LOW = 75.0
HIGH = 163.0


def limits_of(*limits: float) -> torch.Tensor:
    return torch.tensor(limits, dtype=torch.float64)


def test_it_starts_even_over_the_actions_of_each_layer_where_the_budget_allows_all() -> None:
    policy = Policy(COSTS, math.inf)
    every = list(itertools.product(range(4), range(3), range(4), range(4)))
    log_probability = policy(limits_of(math.inf)).log_probability(torch.tensor([every]))
    assert log_probability[0].tolist() == pytest.approx([-math.log(4 * 3 * 4 * 4)] * len(every))


def test_it_has_a_gradient_that_is_finite_and_none_for_actions_that_there_are_not() -> None:
    policy = Policy(COSTS, 120.0)
    choices = policy(limits_of(120, 100)).sample(3, torch.Generator().manual_seed(0))
    policy(limits_of(120, 100)).log_probability(choices).sum().backward()
    for parameter in (policy.logits, policy.slopes):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert float(parameter.grad[1, 3]) == 0.0
        assert int((parameter.grad != 0).sum()) == 15


def test_a_lower_limit_subtracts_its_share_of_the_slopes() -> None:
    policy = Policy(COSTS, HIGH)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        policy.slopes.copy_(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    for share in (0.0, 0.25, 1.0):
        limit = limits_of(HIGH - share * (HIGH - LOW))
        alone = Policy(COSTS, HIGH)
        with torch.no_grad():
            alone.logits.copy_(policy.logits - share * policy.slopes)
        choices = alone(limit).sample(20, torch.Generator().manual_seed(0))
        computed = policy(limit).log_probability(choices)
        expected = alone(limit).log_probability(choices)
        assert torch.allclose(computed, expected, atol=0.02)  # the limit is a whole unit


@pytest.mark.parametrize("limit", [80.0, 100.0, 120.0, 140.0])
def test_at_low_entropy_it_begins_with_the_exact_solution_of_the_additive_model(
    limit: float,
) -> None:
    policy = Policy(COSTS, limit)
    policy.begin_from(LOSSES, limits_of(limit), 0.0)
    fitting = [
        (sum(LOSSES[pair] for pair in enumerate(choice)), choice)
        for choice in itertools.product(range(4), range(3), range(4), range(4))
        if sum(COSTS[pair] for pair in enumerate(choice)) <= limit - 0.5  # less rounding of costs
    ]
    assert tuple(policy(limits_of(limit)).mode()[0].tolist()) == min(fitting)[1]


@pytest.mark.parametrize("entropy", [0.5, 1.5, 3.0])
def test_it_begins_with_the_entropy_that_is_asked_for(entropy: float) -> None:
    limits = limits_of(140, 120)
    policy = Policy(COSTS, 140.0)
    policy.begin_from(LOSSES, limits, entropy)
    assert float(policy(limits).entropy().mean()) == pytest.approx(entropy, abs=1e-3)
    assert float(policy(limits).entropy()[0]) != pytest.approx(entropy, abs=1e-3)


def test_an_entropy_beyond_what_there_is_begins_nearly_even() -> None:
    policy = Policy(COSTS, math.inf)
    policy.begin_from(LOSSES, limits_of(math.inf), 100.0)
    assert float(policy(limits_of(math.inf)).entropy()) == pytest.approx(
        math.log(4 * 3 * 4 * 4), abs=1e-2
    )
