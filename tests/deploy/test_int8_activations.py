"""Activations of 8 bits: their ranges, and the biases that are added to their products."""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from octavo.deploy.comparison import differences
from octavo.deploy.graph import close, trace
from octavo.deploy.int8 import decode
from octavo.deploy.int8_activations import LARGEST_BIAS, quantize_activations
from octavo.deploy.runtime import OnnxModel
from octavo.storage.packed import Packed

Pack = Callable[..., Packed]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


@pytest.fixture(scope="module")
def traced(model: nn.Module, codes_of_all_levels: Pack) -> ir.Model:
    """The network with int8 weights; its activations are still in float."""
    packed = codes_of_all_levels(model, repeat(4), "channel")
    packed.apply(model)
    return close(trace(model, packed.layers, torch.rand(3, 4)), packed.layers, decode).model


def arrays(model: ir.Model) -> dict[str, Any]:
    values = model.graph.initializers.values()
    return {str(value.name): value.const_value.numpy() for value in values if value.const_value}


def test_ranges_come_from_all_batches(traced: ir.Model) -> None:
    small, large = torch.rand(8, 4), 100 * torch.rand(8, 4)
    scales = []
    for batches in ([small], [small, large], [large]):
        quantized = traced.clone()
        quantize_activations(quantized, batches)
        scales.append(arrays(quantized)["input.activation.scale"])
    assert scales[0] < scales[1] == scales[2]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def biases(model: ir.Model) -> list[Any]:
    return [value for name, value in arrays(model).items() if name.endswith(".int32")]


def test_biases_are_stored_in_units_of_the_sums(
    traced: ir.Model, model: nn.Module, batch: Tensor
) -> None:
    quantized = traced.clone()
    quantize_activations(quantized, [batch])
    assert [(bias.dtype, bias.shape) for bias in biases(quantized)] == [
        (np.int32, (4,)),
        (np.int32, (2,)),
    ]
    assert kinds(quantized).count("QuantizeLinear") == 2  # the inputs of both layers
    runner = OnnxModel(ir.to_proto(quantized).SerializeToString())
    with torch.no_grad():
        assert differences(model(batch), runner(batch))[0] < 0.03


@pytest.fixture
def batch() -> Tensor:
    return torch.rand(16, 4, generator=torch.Generator().manual_seed(1))


def test_a_bias_that_no_int32_holds_stays_in_float(traced: ir.Model, batch: Tensor) -> None:
    quantized = traced.clone()
    bias = next(v for v in quantized.graph.initializers.values() if v.name == "2.bias")
    bias.const_value = ir.tensor(np.full(2, LARGEST_BIAS, np.float32), name="2.bias")
    quantize_activations(quantized, [batch])
    assert [stored.shape for stored in biases(quantized)] == [(4,)]
    assert arrays(quantized)["2.bias"].tolist() == [LARGEST_BIAS] * 2
