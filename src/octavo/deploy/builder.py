"""New nodes and constants of an ONNX graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from octavo.storage.quantized import Quantized

__all__ = ["Builder", "channel_rows", "parameter_layout"]


class Builder:
    """A maker of constants and nodes; it inserts the nodes at the head of the graph together."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = []

    def initializer(self, name: str, array: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """Return the constant of this name, a new one if the graph has none yet; ``dtype`` is for
        types that numpy itself does not have.
        """
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.Tensor(np.asarray(array, order="C"), dtype=dtype, name=name)
        shape = ir.Shape(tensor.shape)
        value = ir.Value(
            name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def node(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        """Make a node with one output of this name, and return the output."""
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def insert(self) -> None:
        """Insert the new nodes at the head of the graph."""
        self.graph.insert_before(self.graph[0], self.nodes)
        self.nodes = []


def channel_rows(builder: Builder, layer: Quantized, value: ir.Value) -> ir.Value:
    """Bring weights with a row for each exponent into the shape of the layer's codes.

    The nodes compute ``octavo.formats.rows.from_rows``.
    """
    if not layer.codebook.group_size:  # they have that shape already
        return value
    name = layer.names[0]
    channels = layer.codes.shape[0]
    columns = layer.codes.numel() // channels
    whole = builder.initializer(f"{name}.channels", np.array([channels, -1]))
    value = builder.node("Reshape", [value, whole], f"{name}.padded")
    bounds = [[0], [columns], [1]]  # starts, ends, axes
    limits = [
        builder.initializer(f"{name}.limit{i}", np.array(bound)) for i, bound in enumerate(bounds)
    ]
    value = builder.node("Slice", [value, *limits], f"{name}.inputs")
    shape = builder.initializer(f"{name}.codes_shape", np.array(layer.codes.shape))
    return builder.node("Reshape", [value, shape], f"{name}.channels_first")


def parameter_layout(builder: Builder, layer: Quantized, value: ir.Value) -> ir.Value:
    """Bring weights with their output channels first into the layout of the layer's parameter.

    The nodes compute ``octavo.network.layers.channels_back``.
    """
    if not layer.groups:  # the parameter has its output channels first too
        return value
    name = layer.names[0]
    outputs, inputs, *kernel = layer.codes.shape
    split_shape = np.array([layer.groups, outputs // layer.groups, inputs, *kernel])
    final_shape = np.array([layer.groups * inputs, outputs // layer.groups, *kernel])
    split = builder.initializer(f"{name}.split", split_shape)
    shape = builder.initializer(f"{name}.shape", final_shape)
    order = [0, 2, 1, *range(3, 3 + len(kernel))]
    parts = builder.node("Reshape", [value, split], f"{name}.parts")
    turned = builder.node("Transpose", [parts], f"{name}.turned", perm=order)
    return builder.node("Reshape", [turned, shape], f"{name}.value")
