"""A frozen layer has its solution in the network, and its nearest levels beside it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from octavo.formats.width import Width
from octavo.network.layers import find_layers
from octavo.network.moments import Moments
from octavo.progress import Event
from octavo.ptq.freezer import Freezer, LayerResult
from octavo.ptq.settings import PtqSettings


def moments_of(layer: Any, x: torch.Tensor) -> Moments:
    moments = Moments.of(layer)
    moments.add(slice(None), x.T.unsqueeze(0))
    return moments


def test_a_layer_gets_its_solution_and_progress_is_told() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    (layer,) = find_layers(model)[0]
    before = layer.weight.detach().clone()
    events: list[Event] = []
    x = torch.randn(40, 8) @ torch.randn(8, 8)
    freeze = Freezer({layer.name: Width(3)}, PtqSettings(), {}, None, events.append)
    frozen = freeze(layer, moments_of(layer, x), None)
    assert torch.equal(layer.weight, frozen.quantized.weight())
    nearest = frozen.rounding.weight()
    assert (before - nearest).norm() < (before - layer.weight).norm()
    assert (x @ (before - nearest).T).norm() > (x @ (before - layer.weight).T).norm()
    (event,) = events
    assert (event.phase, event.done, event.total) == ("calibrate", 1, 1)
    assert isinstance(event.detail, LayerResult)
    assert event.detail.compensated < event.detail.nearest


def test_a_batch_norm_takes_the_factor_of_the_solution_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)).eval()
    (layer,) = find_layers(model)[0]
    norm: Any = model[1]
    freeze = Freezer(
        {layer.name: Width(3)}, PtqSettings(absorb=True), {layer.name: norm}, None, lambda _: None
    )
    before = layer.weight.detach().clone()
    frozen = freeze(layer, moments_of(layer, torch.randn(40, 3)), None)
    assert not torch.equal(norm.running_var, torch.ones(8))
    assert ((frozen.rounding.weight() - before).norm() / before.norm()) < 0.5


def test_each_layer_has_the_time_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 13.0])
    monkeypatch.setattr("octavo.ptq.freezer.time", SimpleNamespace(monotonic=lambda: next(clock)))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layers = find_layers(model)[0]
    events: list[Any] = []
    widths = {layer.name: Width(3) for layer in layers}
    freeze = Freezer(widths, PtqSettings(), {}, None, events.append)
    for layer in layers:
        freeze(layer, moments_of(layer, torch.randn(40, 4)), None)
    assert [event.detail.seconds for event in events] == [2.5, 0.5]
