"""A network with one layer of each kind, traced once, and the check of a form that exports it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from octavo.deploy import floating, int8
from octavo.deploy.comparison import differences
from octavo.deploy.exporting import export_checked
from octavo.deploy.graph import OpenGraph, trace
from octavo.deploy.runtime import OnnxModel
from octavo.formats.fitting import Per, group_size_of
from octavo.formats.registry import codebook_at
from octavo.formats.rows import group_count
from octavo.formats.width import WidthLike, read_width
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
        first = steps[:, 0]
        return (
            self.linear(first), self.deep(steps), self.conv1(line),
            torch.relu(self.norm(self.conv2(image))), self.conv3(volume), self.grouped(image),
            self.depthwise(image), self.up1(line), self.up2(image), self.up3(volume),
            self.upgrouped(image), embedded, self.lstm(steps)[0], self.gru(steps)[0],
            self.rnn(steps)[0], self.cell(first)[0], self.attention(steps, steps, steps)[0],
            self.cross(steps, steps, steps[..., :6])[0], self.head(embedded),
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


def quantized(network: nn.Module, widths: Iterator[WidthLike], per: Per) -> Packed:
    """Every layer with codes that use all levels, and exponents that differ by channel or group."""
    generator, layers = torch.Generator().manual_seed(0), {}
    for layer in find_layers(network)[0]:
        shape, width = channels_first(layer.weight, layer.groups).shape, read_width(next(widths))
        codes = torch.randint(0, width.level_count, shape, generator=generator).to(torch.uint8)
        size = group_size_of(per)
        exponents: tuple[int, ...] = () if per == "tensor" else (shape[0],)
        if size:
            exponents = (shape[0], group_count(shape.numel() // shape[0], size))
        top = torch.randint(-4, 0, exponents, generator=generator)
        layers[layer.name] = Quantized.of(layer, codebook_at(width, top.int(), size), codes)
    return pack(network, layers)


@pytest.fixture(scope="session")
def codes_of_all_levels() -> Callable[[nn.Module, Iterator[WidthLike], Per], Packed]:
    """Packs a network with codes that use all levels of the bits that are given for each layer."""
    return quantized


def copy_of(opened: OpenGraph) -> OpenGraph:
    """A graph that a test may close."""
    model = opened.model.clone()
    inputs = {value.name: value for value in model.graph.inputs}
    weights = {
        name: [inputs[value.name] for value in values] for name, values in opened.weights.items()
    }
    return OpenGraph(model, weights)


@pytest.fixture(scope="session")
def traces() -> dict[str, OpenGraph]:
    """The networks that were traced already, by name."""
    return {}


@pytest.fixture
def share_trace(
    traces: dict[str, OpenGraph], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Callable[..., OpenGraph]]:
    """Tracing is slow, and the same for all weights and forms: a network of a name is traced once.

    It must be the same one each time, but for its quantized weights."""

    def share(name: str) -> Callable[..., OpenGraph]:
        def trace_once(model: nn.Module, layers: dict[str, Quantized], example: Any) -> OpenGraph:
            if name not in traces:
                traces[name] = trace(model, layers, example)
            return copy_of(traces[name])

        monkeypatch.setattr(floating, "trace", trace_once)
        monkeypatch.setattr(int8, "trace", trace_once)
        return trace_once

    return share


@pytest.fixture
def check_zoo(
    share_trace: Callable[[str], Callable[..., OpenGraph]], tmp_path: Path
) -> Callable[..., None]:
    """Exports the zoo in a form, with the widths of its layers shifted, and runs the file."""
    share_trace("zoo")

    def check(form: str, shift: int, per: Per, widths: Sequence[WidthLike] = (2, 3, 4, 5)) -> None:
        network = zoo()
        packed = quantized(network, (widths[(i + shift) % len(widths)] for i in range(99)), per)
        made = export_checked(network, packed, tmp_path / "zoo.onnx", form=form, example=batch(2))
        assert made.difference is not None
        assert made.difference < 1e-5
        packed.apply(network)
        for size in (1, 3):
            with torch.no_grad():
                expected = network(*batch(size))
            assert differences(expected, OnnxModel(made.path)(*batch(size)))[0] < 1e-5
        _check_file(made.path, packed)

    return check


def _check_file(path: Path, packed: Packed) -> None:
    """A file has standard operators, and float numbers only as biases, scales and tables."""
    proto = onnx.load(path)
    domains = {node.domain for node in proto.graph.node}
    assert domains | {use.domain for use in proto.opset_import} <= STANDARD
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    books = [layer.codebook for layer in packed.layers.values()]
    tables = sum(book.width.level_count + book.max_exponent.numel() for book in books)
    others = sum(value.numel() for _, value in packed.floats)
    assert sum(ir.from_proto(tensor).size for tensor in floats) <= others + tables
