"""New nodes and constants: named, typed, made once; weights laid out as parameters."""

import onnx_ir as ir
import pytest
import torch
from torch import nn

from octavo.deploy.builder import Builder, parameter_layout
from octavo.deploy.runtime import OnnxModel
from octavo.formats.powers_of_two import power_of_two
from octavo.network.layers import channels_first, find_layers
from octavo.storage.quantized import Quantized


def test_nodes_and_constants_are_named_and_typed() -> None:
    graph = ir.Graph([], [], nodes=[ir.node("Identity", [None])], opset_imports={"": 21})
    builder = Builder(graph)
    value = builder.node(
        "Cast",
        [builder.initializer("codes", torch.zeros((), dtype=torch.uint8).numpy())],
        "index",
        to=6,
    )
    builder.insert()
    assert (value.name, str(graph.initializers["codes"].shape)) == ("index", "[]")
    assert [node.op_type for node in graph] == ["Cast", "Identity"]
    assert builder.initializer("codes", value) is graph.initializers["codes"]


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_come_back_into_the_layout_of_their_parameter(groups: int) -> None:
    """A transposed convolution's parameter has its inputs first."""
    (found,) = find_layers(nn.ConvTranspose2d(4, 6, 3, groups=groups))[0]
    weight = channels_first(found.weight, found.groups)
    book = power_of_two(weight, 3)
    layer = Quantized.of(found, book, book.encode(weight))
    graph = ir.Graph([], [], nodes=[ir.node("Identity", [None])], opset_imports={"": 21})
    builder = Builder(graph)
    rows = builder.initializer("rows", book.decode(layer.codes).numpy())
    value = parameter_layout(builder, layer, rows)
    builder.insert()
    graph.remove(graph[-1], safe=True)
    value.dtype = ir.DataType.FLOAT
    graph.outputs.append(value)
    (computed,) = OnnxModel(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()).run(
        (), {}
    )
    assert torch.equal(computed, layer.weight())
