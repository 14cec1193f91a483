"""The check finds what it is there for: one wrong bit of one weight, other outputs, a broken
graph."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from octavo.deploy.builder import Builder
from octavo.deploy.checks import checked
from octavo.deploy.graph import CompleteGraph, OpenGraph, close
from octavo.errors import ExportError
from octavo.formats.powers_of_two import power_of_two
from octavo.network.layers import find_layers
from octavo.storage.quantized import Quantized


def parts() -> tuple[nn.Module, dict[str, Quantized]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    layers = {}
    for layer in find_layers(model)[0]:
        book = power_of_two(layer.weight, 4)
        layers[layer.name] = Quantized.of(layer, book, book.encode(layer.weight))
        layer.weight.data = layers[layer.name].weight()
    return model, layers


Closing = Callable[[nn.Module, dict[str, Quantized], float], CompleteGraph]


@pytest.fixture
def closed_with(share_trace: Callable[[str], Callable[..., OpenGraph]]) -> Closing:
    """Closes the graph of the network with weights of which one is changed by a share of itself."""
    trace = share_trace("two linear layers")

    def close_with(model: nn.Module, layers: dict[str, Quantized], change: float) -> CompleteGraph:
        opened = trace(model, layers, torch.randn(2, 6))
        return close(opened, layers, partial(decode, change))

    return close_with


def decode(change: float, builder: Builder, name: str, layer: Quantized) -> ir.Value:
    weight = layer.weight().numpy()
    place = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    weight[place] *= 1 + change * (name == "2")
    return builder.initializer(layer.names[0], weight)


def test_what_is_right_passes(closed_with: Closing) -> None:
    model, layers = parts()
    data, comparison = checked(closed_with(model, layers, 0), model, layers, torch.randn(5, 6))
    assert data
    assert comparison.mean <= comparison.largest < 1e-6
    assert comparison.agreement == 1


def test_a_weight_that_is_off_by_its_last_bit_is_named(closed_with: Closing) -> None:
    model, layers = parts()
    with pytest.raises(
        ExportError,
        match=r"^2: ONNX Runtime computes other weights than were packed; nothing was written$",
    ):
        checked(closed_with(model, layers, 2**-23), model, layers, torch.randn(5, 6))


def test_other_outputs_are_seen(closed_with: Closing) -> None:
    model, layers = parts()
    closed = closed_with(model, layers, 0)
    model[2].bias = nn.Parameter(torch.ones(3))  # type: ignore[index]
    _, comparison = checked(closed, model, layers, torch.randn(5, 6))
    assert comparison.largest > 0.01


def test_a_graph_against_the_rules_is_no_file(closed_with: Closing) -> None:
    model, layers = parts()
    closed = closed_with(model, layers, 0)
    closed.model.graph[0].outputs[0].name = closed.model.graph[1].outputs[0].name
    with pytest.raises(ExportError, match=r"^Sequential: not a sound ONNX file: ValidationError: "):
        checked(closed, model, layers, torch.randn(5, 6))
