"""Tracing: weights stay open and untouched, the batch stays free, and what cannot be exported is
named."""

import io
from contextlib import redirect_stderr, redirect_stdout

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from octavo.activations.quantizer import InputFormat, install_quantizers
from octavo.deploy.builder import Builder
from octavo.deploy.graph import close, trace
from octavo.deploy.runtime import OnnxModel
from octavo.errors import ExportError
from octavo.formats.powers_of_two import power_of_two
from octavo.network.layers import channels_first, find_layers
from octavo.storage.quantized import Quantized


def layers_of(model: nn.Module) -> dict[str, Quantized]:
    found = {}
    for layer in find_layers(model)[0]:
        weight = channels_first(layer.weight, layer.groups)
        book = power_of_two(weight, 3, fit="mse", per="channel")
        found[layer.name] = Quantized.of(layer, book, book.encode(weight))
    return found


class Inner(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no form":
            values: Tensor = torch.linalg.svd(x)[1]
            return values
        if self.how == "depends":
            return x if x.sum() > 0 else -x
        return x @ x


class Outer(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(4, 4), Inner(how)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.linear(x))
        return out


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "no form",
            (
                r"^inner \(Inner\): has no form in ONNX: DispatchError: "
                r"No ONNX function found for .*linalg_svd"
            ),
        ),
        ("depends", r"^inner: torch cannot trace it: GuardOnDataDependentSymNode"),
        ("raises", r"^inner: torch cannot trace it: RuntimeError: "),
    ],
)
def test_what_cannot_be_exported_is_named(how: str, said: str) -> None:
    model = Outer(how).eval()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(ExportError, match=said):
        trace(
            model, layers_of(model), torch.randn(3, 5, 4) if how != "raises" else torch.randn(3, 4)
        )
    assert (out.getvalue(), err.getvalue()) == ("", "")


def test_arguments_that_the_model_does_not_take() -> None:
    model = nn.Linear(4, 4).eval()
    with pytest.raises(
        ExportError, match=r"^example: Linear does not take it: too many positional arguments$"
    ):
        trace(model, layers_of(model), (torch.randn(2, 4), torch.randn(2, 4)))


class Constant(nn.Module):
    """Has its weight, but multiplies with a copy that was made before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.copy = torch.zeros(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.copy


def test_a_weight_that_became_a_constant_is_named() -> None:
    model = Constant().eval()
    layers = layers_of(model)
    model.copy = layers["linear"].weight().T.contiguous()
    with pytest.raises(
        ExportError,
        match=(
            r"^linear: its weight is in the graph as a constant; "
            r"the network must use the parameter"
        ),
    ):
        trace(model, layers, torch.randn(2, 4))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batch_stays_free(size: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    opened = trace(model, layers_of(model), torch.randn(size, 3, 4, 4))
    shapes = [
        str(value.shape) for value in (*opened.model.graph.inputs, *opened.model.graph.outputs)
    ]
    assert shapes[0] == "[batch,3,4,4]"
    assert shapes[-1] == "[batch,2]"


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    model = nn.Linear(4, 4).eval()
    assert len(trace(model, layers_of(model), torch.randn(3, 2, 5)[..., :4]).model.graph) == 3
    assert len(trace(model, layers_of(model), torch.randn(4, 3).T).model.graph) == 1


def test_weights_are_open_whole_and_unfused() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(2), nn.Linear(4, 2)
    ).eval()
    opened = trace(model, layers_of(model), torch.randn(2, 3, 4, 4))
    shapes = {
        name: [str(value.shape) for value in values] for name, values in opened.weights.items()
    }
    assert shapes == {"0": ["[4,3,3,3]"], "3": ["[2,4]"]}
    assert [node.op_type for node in opened.model.graph] == [
        "Conv",
        "BatchNormalization",
        "Reshape",
        "Transpose",
        "MatMul",
        "Add",
    ]
    assert all(not node.metadata_props for node in opened.model.graph)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head, self.unused = (
            nn.Embedding(9, 4),
            nn.Linear(4, 9),
            nn.Linear(4, 4),
        )
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(index))
        return out


def test_a_tied_weight_is_decoded_once_and_an_unused_one_not_at_all() -> None:
    model = Tied().eval()
    layers, decoded = layers_of(model), list[str]()

    def decode(builder: Builder, name: str, layer: Quantized) -> ir.Value:
        decoded.append(name)
        return builder.initializer(layer.names[0], layer.weight().numpy())

    opened = trace(model, layers, torch.randint(0, 9, (2, 3)))
    closed = close(opened, layers, decode)
    assert decoded == ["embedding"]
    assert [value.name for value in closed.model.graph.inputs] == ["index"]
    assert {node.op_type for use in closed.weights["embedding"].uses() for node in [use.node]} == {
        "Gather",
        "Transpose",
    }


@pytest.mark.parametrize(("bits", "signed", "nodes"), [(8, True, 2), (8, False, 2), (4, True, 3)])
def test_a_rounded_input_is_traced_as_quantize_and_dequantize(
    bits: int, signed: bool, nodes: int
) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    install_quantizers(model, {"0": InputFormat(bits, signed)})
    x = torch.linspace(-300, 300, 64).reshape(16, 4)
    before = model(x).detach()
    opened = trace(model, {}, x)
    kinds = [node.op_type for node in opened.model.graph]
    assert kinds == ["Clip", "QuantizeLinear", "DequantizeLinear", "Gemm"][3 - nodes :]
    torch.testing.assert_close(OnnxModel(ir.to_proto(opened.model).SerializeToString())(x), before)
    assert torch.equal(model(x), before)  # traced in a way of its own, computed as ever
