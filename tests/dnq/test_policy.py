"""The policy: where it starts, and what it may propose."""

import torch
from torch import Tensor

from octavo.dnq.policy import Policy

ALLOWED = torch.arange(4) < torch.tensor([[4], [1], [2], [3]])


def policy_of(allowed: Tensor = ALLOWED, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Policy(torch.randn(len(allowed), 3), allowed)


def test_it_starts_uniform_over_what_each_layer_may_get() -> None:
    for seed in range(3):
        expected = ALLOWED / ALLOWED.sum(1, keepdim=True)
        assert torch.allclose(policy_of(seed=seed)().exp(), expected)


def test_what_a_layer_may_not_get_is_never_proposed() -> None:
    """Not even where all that is learned speaks for it."""
    policy = policy_of()
    with torch.no_grad():
        policy.bias.copy_((~ALLOWED) * 1e4)
    proposed = torch.multinomial(
        policy().exp(), 5000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    for row, allowed in zip(proposed, ALLOWED, strict=True):
        assert set(row.tolist()) == set(allowed.nonzero().flatten().tolist())
    (-policy()[ALLOWED].sum()).backward()
    assert all(
        parameter.grad is None or bool(parameter.grad.isfinite().all())
        for parameter in policy.parameters()
    )


def test_features_that_are_the_same_in_all_layers_do_no_harm() -> None:
    torch.manual_seed(0)
    policy = Policy(torch.tensor([[1.0, 5.0], [2.0, 5.0]]), torch.ones(2, 3, dtype=torch.bool))
    assert bool(policy.features.isfinite().all())
    assert bool(Policy(torch.ones(1, 2), torch.ones(1, 3, dtype=torch.bool))().isfinite().all())
