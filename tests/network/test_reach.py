"""The layers that inputs reach; ``tests/architectures/test_experts.py`` has them in use."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.layers import find_layers
from octavo.network.reach import batches_for, check_reached, unreached


class Switch(nn.Module):
    """Rows below zero go to the one layer, all others to the other, and none to the third."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.idle = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        below = x[:, 0] < 0
        return torch.cat([self.low(x[below]), self.high(x[~below])])


def test_a_call_without_a_row_reaches_nothing() -> None:
    model = Switch()
    layers = find_layers(model)[0]
    assert unreached(model, layers, [torch.ones(3, 2)]) == ["low", "idle"]
    assert unreached(model, layers, [torch.ones(3, 2), -torch.ones(1, 2)]) == ["idle"]
    with pytest.raises(PlanError, match="expected at least one batch"):
        unreached(model, layers, [])


def test_batches_are_read_only_as_far_as_it_takes() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        raise AssertionError

    model = Switch()
    assert unreached(model, find_layers(model)[0][:2], batches()) == []


def test_other_batches_are_taken_where_they_reach_more() -> None:
    model = Switch()
    others = [torch.ones(1, 2), -torch.ones(1, 2), -torch.ones(2, 2)]
    layers = find_layers(model)[0]
    taken = batches_for(model, layers, [torch.ones(3, 2)], others)
    assert [batch is others[1] for batch in taken] == [True]
    assert batches_for(model, layers[:2], [*others], [-torch.ones(9, 2)]) == []


def test_all_that_is_not_reached_is_named() -> None:
    check_reached([])
    with pytest.raises(PlanError, match=r"^a: no calibration input reaches this layer; leave it"):
        check_reached(["a"])
    with pytest.raises(PlanError, match=r"^a, b: no calibration input reaches these layers"):
        check_reached(["a", "b"])
