"""Parametrizations that are attached to layers leave no trace once they are released."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from octavo.network.layers import Layer, find_layers
from octavo.network.parametrizations import attach, release


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    return model


MODELS: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)),
    "tied": tied,
    "recurrent": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "attention": lambda: nn.MultiheadAttention(4, 2),
}


def attached(model: nn.Module) -> list[Layer]:
    layers, _ = find_layers(model)
    for layer in layers:
        attach(layer, Twice())
    return layers


@pytest.mark.parametrize("kind", MODELS)
def test_release_leaves_plain_modules_with_what_the_network_saw(kind: str) -> None:
    model: nn.Module = MODELS[kind]()
    before = copy.deepcopy(model.state_dict())
    parameters, types = dict(model.named_parameters()), [type(m) for m in model.modules()]
    layers = attached(model)
    seen = {layer.parameter: getattr(layer.module, layer.attribute).detach() for layer in layers}
    assert all(torch.equal(weight, 2 * before[name]) for name, weight in seen.items())
    release(layers)
    assert [type(module) for module in model.modules()] == types
    assert list(model.state_dict()) == list(before)  # in the same order
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in seen.items())
    for module in model.modules():
        assert not parametrize.is_parametrized(module)
        assert not hasattr(module, "_before_attach")
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_tied_weight_is_parametrized_at_each_place() -> None:
    model: Any = tied()
    (layer,) = attached(model)
    assert torch.equal(model[0].weight, model[1].weight)
    assert torch.equal(model[0].weight, 2 * layer.weight)
    release([layer])
    assert model[0].weight is model[1].weight


def test_a_recurrent_module_reads_the_parametrized_weights() -> None:
    model = nn.GRU(3, 4)
    double = copy.deepcopy(model)
    with torch.no_grad():
        for layer in find_layers(double)[0]:
            layer.weight.mul_(2)
    x = torch.randn(5, 2, 3)
    layers = attached(model)
    assert torch.equal(model(x)[0], double(x)[0])
    copy.deepcopy(model)  # no tensor of a graph is left in it
    release(layers)
    assert torch.equal(model(x)[0], double(x)[0])


def test_a_parametrization_of_the_users_own_stays() -> None:
    """Also that of a copy, which shares the class that torch made for it."""
    model = nn.Linear(3, 2)
    parametrize.register_parametrization(model, "bias", Twice())
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3)
    expected = model(x)
    layers = attached(model)
    release(layers)
    assert torch.equal(twin(x), expected)
    assert set(model.parametrizations) == {"bias"}  # type: ignore[arg-type]


def test_a_layer_that_is_parametrized_already_is_none() -> None:
    model = parametrizations.weight_norm(nn.Linear(3, 2))
    assert attached(model) == []
