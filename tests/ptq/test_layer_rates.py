"""Layers whose error does more to the outputs pay less for a bit; the network stays as it was."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.formats.width import Width
from octavo.network.layers import find_layers
from octavo.ptq.layer_rates import MOST, rates_of_layers
from octavo.ptq.settings import PtqSettings


class Two(nn.Module):
    """Two layers beside each other; the outputs of the second count ``share`` as much."""

    def __init__(self, share: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.load_state_dict(self.first.state_dict())
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.first(x) + self.share * self.second(x.flip(1))
        return outputs


def rates(model: nn.Module, batches: Any, rate: float = 2.0) -> dict[str, float]:
    planned = [(layer, Width(3)) for layer in find_layers(model)[0]]
    return rates_of_layers(model.eval(), planned, batches, PtqSettings(rate=rate))


def inputs() -> list[Tensor]:
    return [torch.randn(64, 16, generator=torch.Generator().manual_seed(1))]


def test_rates_go_by_the_root_of_what_layers_lose() -> None:
    equal = rates(Two(1.0), inputs())
    assert equal["first"] == pytest.approx(2, rel=0.2)
    assert equal["second"] == pytest.approx(2, rel=0.2)
    halved = rates(Two(0.25), inputs())
    ratio = equal["second"] / equal["first"]
    assert halved["second"] / halved["first"] == pytest.approx(4 * ratio, rel=0.05)


def test_rates_stay_within_limits() -> None:
    found = rates(Two(0.0), inputs())
    assert found["second"] == 2 * MOST
    assert found["first"] >= 2 / MOST


def test_the_network_is_left_as_it_was() -> None:
    model = Two(0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates(model, inputs())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_layers_that_cannot_be_compared_have_one_rate() -> None:
    class Nothing(Two):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            return "a text"

    class Noise(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + random.random()

    for model in (Nothing(1.0), Noise(0.1)):
        assert rates(model, inputs()) == {"first": 2, "second": 2}
    assert rates(Two(0.1), inputs(), 0.0) == {"first": 0, "second": 0}
    assert rates(nn.Sequential(nn.Linear(16, 4)), inputs()) == {"0": 2}
