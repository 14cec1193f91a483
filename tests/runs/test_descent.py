"""The steps of SGD; what they do to a network is tested with retraining."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import scales
from octavo.errors import TrainingError
from octavo.runs.descent import OCTAVE, SCALE_RATE, Descent
from octavo.runs.retraining import Retraining

SETTINGS = Retraining(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    quantize_activations(model, [X], 4)
    return model


def steps(model: nn.Module, descent: Descent, count: int) -> None:
    for _ in range(count):
        descent([model(X).square().mean()])


def same(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("rate", [0.1, 50.0])  # with the second, scales reach their bounds
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_descent_goes_on_bit_for_bit(at: int, rate: float) -> None:
    settings = Retraining(learning_rate=rate, momentum=0.9, weight_decay=0.01)
    whole = net()
    steps(whole, Descent(whole, settings, 8), 8)
    first = net()
    descent = Descent(first, settings, 8)
    steps(first, descent, at)
    state: Any = copy.deepcopy(descent.state_dict())
    second = net()
    second.load_state_dict(first.state_dict())
    resumed = Descent(second, settings, 8)  # the scales have moved: the state has the first ones
    resumed.load_state_dict(state)
    steps(second, resumed, 8 - at)
    assert same(second, whole)
    assert not same(first, whole)


def test_scales_move_faster_and_no_further_than_an_octave() -> None:
    model = net()
    first = [scale.item() for scale in scales(model)]
    fast = Retraining(learning_rate=50.0, clip=1e9)
    steps(model, Descent(model, fast, 8), 5)
    for scale, before in zip(scales(model), first, strict=True):
        assert before / OCTAVE <= scale.item() <= before * OCTAVE
    rates = [
        group["lr"]
        for group in Descent(model, SETTINGS, 8).state_dict()["optimizer"]["param_groups"]
    ]
    assert rates == [0.1, SCALE_RATE * 0.1]


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model = net()
    before = copy.deepcopy(model)
    loss, norm = Descent(model, SETTINGS, 8)([model(X).square().mean() * torch.nan])
    assert loss.isnan()
    assert norm.isnan()
    assert same(model, before)


def test_there_must_be_something_to_train() -> None:
    with pytest.raises(TrainingError, match=r"^expected Linear to have parameters that require"):
        Descent(nn.Linear(2, 2).requires_grad_(False), SETTINGS, 1)
