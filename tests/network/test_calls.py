"""Calls that leave nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.calls import call_alone, feed, few_rows, undisturbed


class Impure(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.add_(torch.rand_like(x))
        return self.layer(self.last) * self.calls  # type: ignore[no-any-return]


def test_nothing_stays_of_calls_and_the_state_goes_on_between_them() -> None:
    model, x = Impure(), torch.zeros(2, 3)
    random_state = torch.get_rng_state()
    with undisturbed(model), torch.no_grad():
        first = call_alone(model, x, 0)
        second = call_alone(model, x, 0)
        assert torch.allclose(second, 2 * first)
    assert not x.any()
    assert not model.calls.any()
    assert not hasattr(model, "last")
    assert torch.equal(torch.get_rng_state(), random_state)


def test_every_batch_is_fed_and_none_is_an_error() -> None:
    model, seen = Impure(), list[Any]()
    model.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batches = [torch.zeros(2, 3), torch.zeros(1, 3)]
    feed(model, batches)
    assert [len(x) for x in seen] == [2, 1]
    assert not any(batch.any() for batch in batches)
    with pytest.raises(PlanError, match="expected at least one batch"):
        feed(model, [])


def test_a_few_rows_stand_for_a_batch_where_the_model_takes_them() -> None:
    image = torch.zeros(3, 8, 8)
    assert few_rows(nn.Conv2d(3, 4, 3), image, 2) is image  # its channels are no rows
    assert few_rows(nn.Linear(3, 4), torch.zeros(9, 3), 2).shape == (2, 3)  # type: ignore[union-attr]
    named = {"input": torch.zeros(9, 3)}
    assert few_rows(nn.Linear(3, 4), named, 2) is named
    scalar = torch.zeros(())
    assert few_rows(nn.Identity(), scalar, 2) is scalar
    model, random_state = Impure().train(), torch.get_rng_state()
    few_rows(model, torch.zeros(9, 3), 2)
    assert not model.calls.any()
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
