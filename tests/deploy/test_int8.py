"""The form for integer kernels: the integers are the packed weights, batch norms are folded
exactly, integer kernels do run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import input_quantizers
from octavo.deploy.comparison import differences
from octavo.deploy.exporting import export_checked
from octavo.deploy.float32 import decode as decode_float
from octavo.deploy.graph import OpenGraph, close
from octavo.deploy.int8 import decode, fold_norms, int8_graph, is_exact
from octavo.deploy.runtime import OnnxModel
from octavo.formats.codebook import power
from octavo.formats.powers_of_two import power_of_two
from octavo.network.layers import channels_first, find_layers
from octavo.storage.packed import Packed, pack
from octavo.storage.quantized import Quantized

Share = Callable[[str], Callable[..., OpenGraph]]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.pool(torch.relu(self.second(self.depthwise(x)) + x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def residual() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Residual().eval()
        for norm in (model.norm, model.second):
            norm.weight.data = torch.randn(8)  # of both signs
            norm.bias.data, norm.running_mean, norm.running_var = (
                torch.randn(8),
                torch.randn(8),
                torch.rand(8) + 0.5,
            )
        model.norm.weight.data[2] = 0
    return model


def quantize(model: nn.Module, bits: int = 4) -> Packed:
    """Nearest levels; the model gets them too."""
    layers = {}
    for layer in find_layers(model)[0]:
        weight = channels_first(layer.weight, layer.groups)
        book = power_of_two(weight, bits, fit="mse", per="channel")
        layers[layer.name] = Quantized.of(layer, book, book.encode(weight))
    packed = pack(model, layers)
    packed.apply(model)
    return packed


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value
    }


def kernels(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_the_integers_are_the_packed_weights_but_for_the_signs_of_batch_norms(
    share_trace: Share,
) -> None:
    share_trace("residual")
    model = residual()
    packed = quantize(model)
    graph, _ = int8_graph(model, packed.layers, [images()])
    found = arrays(graph.model)
    stored = {a.shape: a for name, a in found.items() if name.endswith(".int8")}
    for name, norm in (("stem", model.norm), ("depthwise", model.second)):
        layer = packed.layers[name]
        sign = norm.weight.detach().sign().view(-1, 1, 1, 1)
        unit = (layer.weight() / power(layer.codebook.max_exponent).view(-1, 1, 1, 1)) * 8 * sign
        assert np.array_equal(stored[tuple(unit.shape)], unit.numpy())
    assert stored[(8, 5)].dtype == np.int8 if (8, 5) in stored else stored[(5, 8)].dtype == np.int8


def test_folding_batch_norms_changes_nothing_but_rounding(share_trace: Share) -> None:
    trace = share_trace("residual")
    model = residual()
    packed = quantize(model)
    closed = close(trace(model, packed.layers, images()), packed.layers, decode_float)
    plain = OnnxModel(ir.to_proto(closed.model).SerializeToString())(images())
    graph = close(trace(model, packed.layers, images()), packed.layers, decode)
    assert sum(node.op_type == "BatchNormalization" for node in graph.model.graph) == 2
    fold_norms(graph.model)
    assert sum(node.op_type == "BatchNormalization" for node in graph.model.graph) == 0
    assert (
        differences(plain, OnnxModel(ir.to_proto(graph.model).SerializeToString())(images()))[0]
        < 1e-6
    )


@pytest.mark.parametrize(("small", "inexact"), [(1 / 64, set()), (1 / 128, {"stem", "depthwise"})])
def test_a_negative_norm_of_a_channel_whose_largest_weight_is_minus_128(
    small: float, inexact: set[str], share_trace: Share, tmp_path: Path
) -> None:
    """Its sign makes +128 of it, which is no int8 number: the channel is halved."""
    share_trace("residual")
    model = residual()
    with torch.no_grad():
        for conv in (model.stem, model.depthwise):
            rows = conv.weight.flatten(1)
            rows.copy_(small * rows.sign())
            rows[:, 0] = -1
    packed = quantize(model, 5)
    made = export_checked(model, packed, tmp_path / "net.onnx", form="int8", example=images())
    assert made.difference is not None
    assert made.difference < 0.05
    assert set(made.inexact) - {"head"} == inexact


def test_integer_kernels_run_and_come_near(share_trace: Share, tmp_path: Path) -> None:
    share_trace("residual")
    model = residual()
    packed = quantize(model)
    made = export_checked(
        model, packed, tmp_path / "net.onnx", form="int8", example=[images(), images(4)]
    )
    assert made.inexact == ()
    assert made.difference is not None
    assert 1e-6 < made.difference < 0.05
    with torch.no_grad():
        assert differences(model(images(3)), OnnxModel(made.path)(images(3)))[0] < 0.05
    proto = onnx.load(made.path)
    assert {node.domain for node in proto.graph.node} == {""}
    found = kernels(made.path, tmp_path)
    assert found["QLinearConv"] == 2
    assert found["QLinearAdd"] == 1
    assert found["Conv"] + found["Add"] + found["Relu"] + found["BatchNormalization"] == 0


def test_linear_layers_run_as_integers_too(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    ).eval()
    packed = quantize(model)
    for x, float_kernels in ((torch.randn(64, 16), "Gemm"), (torch.randn(16, 3, 16), "MatMul")):
        made = export_checked(model, packed, tmp_path / "net.onnx", form="int8", example=x)
        assert made.difference is not None
        assert made.difference < 0.03
        assert kernels(made.path, tmp_path)[float_kernels] == 0


def test_what_has_no_integer_kernel_stays_exact(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru = nn.Embedding(7, 6), nn.GRU(6, 4, batch_first=True)
            self.up = nn.ConvTranspose1d(4, 6, 3, groups=2)

        def forward(self, index: Tensor) -> Tensor:
            out: Tensor = self.up(self.gru(self.embedding(index))[0].transpose(1, 2))
            return out

    model = Mixed().eval()
    made = export_checked(
        model,
        quantize(model),
        tmp_path / "net.onnx",
        form="int8",
        example=torch.randint(0, 7, (3, 5)),
    )
    assert made.difference is not None
    assert made.difference < 1e-5


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("form", ["lut", "int8"])
def test_the_networks_own_quantizers_count(
    form: Any, bits: int, share_trace: Share, tmp_path: Path
) -> None:
    """Their steps are in the file; and in the forms that compute in float, what they compute is the
    same but for ties."""
    share_trace(f"residual with inputs of {bits} bits")
    model = residual()
    quantize_activations(model, [images()], {"*": bits, "stem": 8})
    packed = quantize(model)
    made = export_checked(residual(), packed, tmp_path / "net.onnx", form=form, example=images())
    assert made.difference is not None
    assert made.difference < (0.02 if bits == 8 else 0.15)
    proto = onnx.load(made.path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    quantized = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    found = {(float(constants[node.input[1]]), int(constants[node.input[2]])) for node in quantized}
    own = {
        (float(q.effective_scale().detach()), -q.format.lowest)
        for q in input_quantizers(model).values()
    }
    assert own <= found
    assert form == "int8" or own == found
    if form == "int8" and bits == 8:
        assert kernels(made.path, tmp_path)["QLinearConv"] == 2
        assert kernels(made.path, tmp_path)["QLinearAdd"] == 1


@pytest.mark.parametrize(("bits", "exact"), [(2, True), (4, True), (5, False)])
def test_only_five_bits_are_not_exact(bits: int, exact: bool) -> None:
    model = nn.Linear(64, 64)
    packed = quantize(model, bits)
    (layer,) = packed.layers.values()
    assert is_exact("linear", layer) is exact
