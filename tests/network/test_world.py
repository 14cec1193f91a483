"""Passes that take turns on one model each keep their own state."""

from typing import Any

import torch
from torch import nn

from octavo.network.world import World


def test_two_worlds_do_not_mix() -> None:
    model: Any = nn.Linear(2, 2)
    model.items = [0]
    items, random_state = model.items, torch.get_rng_state()
    one, two = (World(model, {("", "items"), ("", "new")}) for _ in range(2))
    for world in (one, two):
        world.begin(5)
    with one:
        model.items.append(1)
        model.new = 1
        first = torch.randn(3)
    with two:
        assert model.items == [0]
        assert not hasattr(model, "new")
        assert torch.equal(torch.randn(3), first)
    with one:
        assert model.items == [0, 1]
        assert model.new == 1
        assert not torch.equal(torch.randn(3), first)
    assert model.items is items
    assert items == [0]
    assert not hasattr(model, "new")
    assert torch.equal(torch.get_rng_state(), random_state)
