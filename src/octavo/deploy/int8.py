"""The form for integer kernels: int8 weights that are powers of two, batch norms in their scales,
activations of 8 bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_all_uses_with
from torch import nn

from octavo.deploy.elements import integers
from octavo.deploy.graph import Builder, Closed, close, trace
from octavo.deploy.onnx import in_place
from octavo.deploy.ranges import Range, measure
from octavo.network.calling import Inputs
from octavo.storage.quantized import Quantized

__all__ = ["fold_norms", "int8_graph", "is_exact"]

MULTIPLY = ("Conv", "Gemm", "MatMul")  # ONNX Runtime has integer kernels of these ...
JOIN = ("Add", "Concat", "AveragePool", "GlobalAveragePool")  # ... and of these, between them
MOVE = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Pad",
)  # these change no value
ACTIVATE = ("Relu", "Clip")  # cost nothing where integers saturate anyway
LARGEST_BIAS = 2.0**30  # of an int32, with room for the sum


@dataclass(frozen=True)
class _Weight:
    """A weight in the graph: int8 codes times scales along an axis."""

    codes: NDArray[Any]
    scale: NDArray[Any]
    axis: int

    @classmethod
    def of(cls, value: ir.Value | None) -> "_Weight | None":
        """The weight that a value is, if it is one."""
        node = None if value is None else value.producer()
        if node is None or node.op_type != "DequantizeLinear" or _constant(node.inputs[0]) is None:
            return None
        codes, scale = _constant(node.inputs[0]), _constant(node.inputs[1])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return cls(codes, np.broadcast_to(scale, codes.shape[axis]), axis)

    def put(self, builder: Builder, name: str) -> ir.Value:
        """The weight as a new value."""
        codes = builder.initializer(f"{name}.int8", self.codes)
        scale = builder.initializer(f"{name}.scale", self.scale)
        zero = builder.initializer(f"{name}.zero", np.zeros(self.scale.shape, np.int8))
        return builder.node("DequantizeLinear", [codes, scale, zero], name, axis=self.axis)


def int8_graph(
    model: nn.Module, layers: Mapping[str, Quantized], batches: Sequence[Inputs], opset: int
) -> Closed:
    """Quantized weights and, around what multiplies, quantized activations, their ranges from
    ``batches``.
    """
    closed = close(trace(model, layers, batches[0], opset), layers, _from_int8)
    graph = closed.model.graph
    fold_norms(graph)
    _turn_weights(graph)
    _share(graph)
    chosen = _chosen(graph)
    ranges = measure(
        closed.model, batches, sorted({source.name or "" for source in chosen.values()})
    )
    for value, source in chosen.items():
        _quantize(graph, value, ranges[source.name or ""])
    _quantize_biases(graph)
    _sweep(graph)
    return closed


def fold_norms(graph: ir.Graph) -> None:
    """Batch norms behind convolutions become part of their weights' scales: the codes stay powers
    of two.
    """
    builder = Builder(graph)
    for node in [node for node in graph if node.op_type == "Conv"]:
        weight, norm = _Weight.of(node.inputs[1]), _only_user(node.outputs[0])
        if weight is None or norm is None or norm.op_type != "BatchNormalization":
            continue
        gamma, beta, mean, variance = (
            _constant(value).astype(np.float64) for value in norm.inputs[1:5]
        )
        epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
        factor = gamma / np.sqrt(variance + epsilon)
        sign = np.sign(factor).astype(np.int8).reshape(-1, *[1] * (weight.codes.ndim - 1))
        scale = (weight.scale * np.where(factor == 0, 1, np.abs(factor))).astype(np.float32)
        bias = (
            _constant(node.inputs[2])
            if len(node.inputs) > 2 and node.inputs[2] is not None
            else 0.0
        )
        shift = ((bias - mean) * factor + beta).astype(np.float32)
        name = f"{node.outputs[0].name}.folded"
        folded = [
            _Weight(weight.codes * sign, scale, 0).put(builder, name),
            builder.initializer(f"{name}.bias", shift),
        ]
        node.resize_inputs(3)
        node.replace_input_with(1, folded[0])
        node.replace_input_with(2, folded[1])
        replace_all_uses_with(norm.outputs[0], node.outputs[0], replace_graph_outputs=True)
        graph.remove(norm, safe=True)
    builder.insert()
    _sweep(graph)


def is_exact(name: str, layer: Quantized) -> bool:
    """Whether int8 holds a layer's weights exactly."""
    return integers(layer.codebook, layer.codes, name)[2]


def _from_int8(builder: Builder, name: str, layer: Quantized) -> ir.Value:
    codes, scale, _ = integers(layer.codebook, layer.codes, name)
    return in_place(
        builder, layer, _Weight(codes.numpy(), scale.numpy(), 0).put(builder, layer.names[0])
    )


def _turn_weights(graph: ir.Graph) -> None:
    """Transposed weights are stored that way: the kernels look for them right behind their
    scales.
    """
    builder = Builder(graph)
    for node in [node for node in graph if node.op_type == "Transpose"]:
        weight = _Weight.of(node.inputs[0])
        if weight is not None and weight.codes.ndim == 2:
            turned = _Weight(np.ascontiguousarray(weight.codes.T), weight.scale, 1 - weight.axis)
            replace_all_uses_with(
                node.outputs[0], turned.put(builder, f"{node.outputs[0].name}.turned")
            )
            graph.remove(node, safe=True)
    builder.insert()
    _sweep(graph)


def _share(graph: ir.Graph) -> None:
    """Where the network rounds a value for one layer, all integer kernels see it rounded."""
    for node in [node for node in graph if node.op_type == "QuantizeLinear"]:
        value, readers = node.inputs[0], [use.node.outputs[0] for use in node.outputs[0].uses()]
        for use in tuple(value.uses()) if value is not None and readers else ():
            if use.node.op_type in (*MULTIPLY, *JOIN, *MOVE):
                use.node.replace_input_with(use.idx, readers[0])
    graph.sort()


def _chosen(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """The activations to quantize, and whose range each has: its own, or that of the one it was
    moved from.
    """
    chosen: dict[ir.Value, ir.Value] = {}
    for node in graph:
        data = [value for value in node.inputs if value is not None and _constant(value) is None]
        output = _activated(node.outputs[0])
        if (
            node.op_type in MULTIPLY
            and _Weight.of(node.inputs[1])
            and data
            and data[0].dtype == ir.DataType.FLOAT
        ):
            _choose(chosen, data[0], data[0])
            if node.op_type == "Conv" and not output.is_graph_output():
                _choose(chosen, output, output)
        elif not data or output.is_graph_output():
            continue
        elif node.op_type in MOVE and (data[0] in chosen or _step(data[0]) is not None):
            _choose(chosen, node.outputs[0], chosen.get(data[0], data[0]))
        elif node.op_type in JOIN and all(
            value in chosen or _step(value) is not None for value in data
        ):
            _choose(chosen, output, output)
    return chosen


def _choose(chosen: dict[ir.Value, ir.Value], value: ir.Value, source: ir.Value) -> None:
    """Unless the network rounds it already: its own quantizers count."""
    if _step(value) is None and all(use.node.op_type != "QuantizeLinear" for use in value.uses()):
        chosen.setdefault(value, source)


def _activated(value: ir.Value) -> ir.Value:
    """A value behind the ReLU that is its only user, or itself."""
    user = _only_user(value)
    return (
        value
        if user is None or user.op_type not in ACTIVATE or value.is_graph_output()
        else user.outputs[0]
    )


def _quantize(graph: ir.Graph, value: ir.Value, span: Range) -> None:
    """Let all users of ``value`` see it in 8 bits."""
    name, builder = f"{value.name}.activation", Builder(graph)
    users = [(use.node, use.idx) for use in value.uses()]
    scale = builder.initializer(f"{name}.scale", span.scale)
    zero = builder.initializer(f"{name}.zero", span.zero)
    codes = builder.node(
        "QuantizeLinear", [_before_activation(value), scale, zero], f"{name}.codes"
    )
    seen = builder.node("DequantizeLinear", [codes, scale, zero], f"{name}.value")
    for node, index in users:
        node.replace_input_with(index, seen)
    producer = value.producer()
    if producer is None:
        builder.insert()
    else:
        graph.insert_after(producer, builder.nodes)


def _before_activation(value: ir.Value) -> ir.Value:
    """What a ReLU is given: codes saturate at the ends of its range by themselves."""
    node = value.producer()
    if node is None or node.op_type not in ACTIVATE or node.inputs[0] is None:
        return value
    bounds = [_constant(bound) for bound in node.inputs[1:]]
    around_zero = all(bound is not None for bound in bounds) and (
        not bounds or float(bounds[0]) <= 0
    )
    return node.inputs[0] if around_zero else value


def _quantize_biases(graph: ir.Graph) -> None:
    """Biases as int32, in units of what they are added to: the kernels take no others."""
    builder = Builder(graph)
    for node in [
        node for node in graph if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2
    ]:
        step, weight, bias = (
            _step(node.inputs[0]),
            _Weight.of(node.inputs[1]),
            _constant(node.inputs[2]),
        )
        if step is None or weight is None or bias is None or bias.ndim != 1:
            continue
        unit = (step * weight.scale).astype(np.float32)
        if (
            np.abs(bias / unit).max() > LARGEST_BIAS
        ):  # it stays in float, and the layer computes in float
            continue
        name = f"{node.outputs[0].name}.bias"
        codes = builder.initializer(f"{name}.int32", np.rint(bias / unit).astype(np.int32))
        node.replace_input_with(
            2,
            builder.node(
                "DequantizeLinear", [codes, builder.initializer(f"{name}.unit", unit)], name, axis=0
            ),
        )
    builder.insert()


def _step(value: ir.Value | None) -> Any:
    """The distance of an activation's levels, or None where it is not quantized."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or _constant(node.inputs[0]) is not None:
        return None
    return _constant(node.inputs[1])


def _only_user(value: ir.Value) -> ir.Node | None:
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _constant(value: ir.Value | None) -> Any:
    """The array that a value is, or None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _sweep(graph: ir.Graph) -> None:
    """Take out what nothing uses any more."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [
        name
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output()
    ]:
        del graph.initializers[name]
