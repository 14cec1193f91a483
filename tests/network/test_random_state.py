"""torch's random state."""

import torch
from torch import nn

from octavo.network.random_state import RandomState


def test_the_same_seed_draws_the_same_and_the_state_is_put_back() -> None:
    random = RandomState(nn.Linear(2, 2))
    before = torch.get_rng_state()
    with random.kept():
        random.seed(3)
        first = torch.randn(4)
        random.seed(3)
        state = random.read()
        assert torch.equal(torch.randn(4), first)
        random.put(state)
        assert torch.equal(torch.randn(4), first)
        random.seed(4)
        assert not torch.equal(torch.randn(4), first)
    assert torch.equal(torch.get_rng_state(), before)
