"""Every kind of layer, at every number of bits, in every form that computes in float32: exported,
run, compared."""

import importlib
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from octavo.deploy.exporting import export_checked
from octavo.deploy.graph import OpenGraph, trace
from octavo.deploy.runtime import OnnxModel, differences
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.sums_of_powers import additive_powers
from octavo.network.layers import channels_first, find_layers
from octavo.storage.packed import Packed, pack
from octavo.storage.quantized import Quantized

STANDARD = {"", "ai.onnx"}


class Zoo(nn.Module):
    """One layer of each kind; what comes out is their outputs, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.deep = nn.Linear(8, 6), nn.Linear(8, 6, bias=False)
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv1d(4, 6, 3),
            nn.Conv2d(4, 6, 3, bias=False),
            nn.Conv3d(2, 3, 3),
        )
        self.norm = nn.BatchNorm2d(6)
        self.grouped, self.depthwise = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4)
        self.up1, self.up2, self.up3 = (
            nn.ConvTranspose1d(4, 6, 3),
            nn.ConvTranspose2d(4, 6, 3),
            nn.ConvTranspose3d(2, 3, 2),
        )
        self.upgrouped = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True)
        self.gru, self.rnn, self.cell = (
            nn.GRU(8, 5, batch_first=True),
            nn.RNN(8, 5, batch_first=True),
            nn.LSTMCell(8, 5),
        )
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=8, vdim=6, batch_first=True)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, image: Tensor, steps: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        line, volume = image.flatten(2), image.reshape(-1, 2, 2, 6, 6).repeat(1, 1, 2, 1, 1)
        embedded = self.embedding(index)
        return (
            self.linear(steps[:, 0]), self.deep(steps), self.conv1(line), torch.relu(self.norm(self.conv2(image))),
            self.conv3(volume), self.grouped(image), self.depthwise(image), self.up1(line), self.up2(image), self.up3(volume),
            self.upgrouped(image), embedded, self.lstm(steps)[0], self.gru(steps)[0], self.rnn(steps)[0],
            self.cell(steps[:, 0])[0], self.attention(steps, steps, steps)[0], self.cross(steps, steps, steps[..., :6])[0],
            self.head(embedded),
        )  # fmt: skip


def batch(size: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(size)
    image, steps = (
        torch.randn(size, 4, 6, 6, generator=generator),
        torch.randn(size, 3, 8, generator=generator),
    )
    return image, steps, torch.randint(0, 11, (size, 4), generator=generator)


def zoo() -> Zoo:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        network = Zoo().eval()
        for name, value in network.norm.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(6) + 0.5 if "var" in name else torch.randn(6))
    return network


def quantized(network: nn.Module, bits: Iterator[int], per: str) -> Packed:
    """Every layer with codes that use all levels, and tops that differ by channel."""
    generator, layers = torch.Generator().manual_seed(0), {}
    for layer in find_layers(network)[0]:
        shape, width = channels_first(layer.weight, layer.groups).shape, next(bits)
        codes = torch.randint(0, 2 ** (width - 1) + 1, shape, generator=generator).to(torch.uint8)
        top = torch.randint(-4, 0, (shape[0],) if per == "channel" else (), generator=generator)
        layers[layer.name] = Quantized.of(layer, PowerOfTwo(width, top.int()), codes)
    return pack(network, layers)


@pytest.fixture(scope="module")
def traced() -> OpenGraph:
    """Tracing is slow, and the same for all weights."""
    network = zoo()
    return trace(network, quantized(network, cycle([2]), "tensor").layers, batch(2), 21)


@pytest.fixture
def _traced_once(traced: OpenGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(
        network: nn.Module, layers: dict[str, Quantized], example: object, opset: int
    ) -> OpenGraph:
        model = traced.model.clone()
        inputs = {value.name: value for value in model.graph.inputs}
        return OpenGraph(
            model, {n: [inputs[v.name] for v in values] for n, values in traced.weights.items()}
        )

    monkeypatch.setattr(importlib.import_module("octavo.deploy.onnx"), "trace", again)


@pytest.mark.usefixtures("_traced_once")
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("form", ["lut", "fp8"])
def test_every_kind_of_layer_at_every_number_of_bits(
    form: str, shift: int, per: str, tmp_path: Path
) -> None:
    """Over the shifts, each layer has each of 2 to 5 bits. The export itself compares all weights,
    bit for bit."""
    network = zoo()
    bits = cycle([2, 3, 4, 5])
    packed = quantized(network, iter([(next(bits) + shift) % 4 + 2 for _ in range(99)]), per)
    made = export_checked(network, packed, tmp_path / "zoo.onnx", form=form, example=batch(2))
    assert made.difference is not None
    assert made.difference < 1e-5
    packed.apply(network)
    for size in (1, 3):
        with torch.no_grad():
            assert differences(network(*batch(size)), OnnxModel(made.path)(*batch(size)))[0] < 1e-5
    proto = onnx.load(made.path)
    assert {node.domain for node in proto.graph.node} | {
        use.domain for use in proto.opset_import
    } <= STANDARD
    numbers = sum(
        ir.from_proto(t).size
        for t in proto.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
    )
    tables = sum(17 + layer.codes.shape[0] for layer in packed.layers.values())  # levels and scales
    assert numbers <= sum(value.numel() for _, value in packed.floats) + tables  # and no weight


def test_the_float_form_holds_the_weights_as_they_are(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2, groups=1)
    ).eval()
    packed = quantized(network, cycle([3]), "channel")
    made = export_checked(
        network, packed, tmp_path / "net.onnx", form="float", example=torch.randn(2, 3, 6, 6)
    )
    held = {
        tensor.name: ir.from_proto(tensor).numpy()
        for tensor in onnx.load(made.path).graph.initializer
    }
    for name, layer in packed.layers.items():
        assert np.array_equal(held[f"{name}.weight"], layer.weight().numpy())


@pytest.mark.parametrize("form", ["lut", "fp8", "int8"])
def test_sums_of_two_powers_of_two(form: str, tmp_path: Path) -> None:
    network, layers = (
        nn.Sequential(
            nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4)
        ).eval(),
        {},
    )
    for layer, bits in zip(find_layers(network)[0], (5, 6, 8 if form == "lut" else 5), strict=True):
        book = additive_powers(layer.weight, bits, per="channel" if bits == 6 else "tensor")
        layers[layer.name] = Quantized.of(layer, book, book.encode(layer.weight))
    made = export_checked(
        network,
        pack(network, layers),
        tmp_path / "net.onnx",
        form=form,
        example=torch.randn(64, 40),
    )
    assert made.difference is not None
    assert made.difference < (1e-5 if form != "int8" else 0.03)
    assert made.inexact == ()


def test_codes_are_packed_in_four_bits(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    for bits, size in ((4, 2 * 64 * 64 / 2), (5, 2 * 64 * 64)):
        packed = quantized(network, cycle([bits]), "channel")
        made = export_checked(network, packed, tmp_path / "net.onnx", example=torch.randn(2, 64))
        assert size < made.bytes < size + 3500
