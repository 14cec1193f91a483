"""Attributes and buffers of modules are put back, whatever was done to them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.network.module_state import isolated, same


def test_everything_is_put_back() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.items = [torch.ones(2)]
    model[0].depth = 3
    items, mean = model.items, model[1].running_mean
    with isolated(model):
        model.items.append(1)
        model.items[0].zero_()
        model[0].depth += 1
        model[0].new = 5
        del model[1].num_batches_tracked
        model[1].running_mean.fill_(7)
    assert model.items is items
    assert len(items) == 1
    assert items[0].all()
    assert model[0].depth == 3
    assert not hasattr(model[0], "new")
    assert model[1].running_mean is mean
    assert not mean.any()
    assert model[1].num_batches_tracked == 0


def test_only_the_slots_are_put_back_and_weights_stay_the_same_objects() -> None:
    model: Any = nn.BatchNorm1d(2)
    weight = model.weight
    with isolated(model, {("", "running_mean")}):
        assert model.weight is weight
        model.running_mean.fill_(7)
        model.running_var.fill_(7)
    assert not model.running_mean.any()
    assert (model.running_var == 7).all()


@pytest.mark.parametrize(
    ("value", "other", "equal"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.ones(2), torch.zeros(2), False),
        ([1, {"a": torch.ones(2)}], [1, {"a": torch.ones(2)}], True),
        ([1, {"a": torch.ones(2)}], [1, {"b": torch.ones(2)}], False),
        (SimpleNamespace(a=[1]), SimpleNamespace(a=[1]), True),
        (SimpleNamespace(a=[1]), SimpleNamespace(a=[2]), False),
        (np.ones(2), np.zeros(2), False),
        ({1, 2}, {1, 2}, True),
        (1, 1.0, False),
        (object(), object(), True),  # nothing in them can differ
    ],
)
def test_values_are_compared_by_what_they_hold(value: Any, other: Any, equal: bool) -> None:
    assert same(value, other) is equal
