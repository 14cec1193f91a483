"""Activations of the form ``int8``: which values of the graph get 8 bits, over which ranges.

ONNX Runtime has integer kernels of some operators only. They are used where every input comes from
a DequantizeLinear and the output goes to a QuantizeLinear.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from octavo.deploy.builder import Builder
from octavo.deploy.ranges import Range, measure
from octavo.network.forward import Inputs

__all__ = ["constant", "only_user", "quantize_activations"]

MULTIPLY = ("Conv", "Gemm", "MatMul")  # these have integer kernels ...
JOIN = ("Add", "Concat", "AveragePool", "GlobalAveragePool")  # ... and so have these, between them
# These move values and change none.
MOVE = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad")
ACTIVATE = ("Relu", "Clip")  # these cost nothing where integers saturate anyway
LARGEST_BIAS = 2.0**30  # of an int32, with room for the sum


def quantize_activations(model: ir.Model, batches: Sequence[Inputs]) -> None:
    """Quantize the activations around the layers that multiply, and their biases; the ranges come
    from ``batches``. Values that the network rounds by itself keep their own quantizers.
    """
    graph = model.graph
    _share_quantizers(graph)
    sources = _sources(graph)
    ranges = measure(model, batches, sorted({source.name or "" for source in sources.values()}))
    for value, source in sources.items():
        _quantize(graph, value, ranges[source.name or ""])
    _quantize_biases(graph)


def constant(value: ir.Value | None) -> Any:
    """Return the array of a constant value; None for any other."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the node that uses a value, if there is exactly one and the value is no output."""
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _share_quantizers(graph: ir.Graph) -> None:
    """Let all integer kernels see a value rounded that the network rounds for one layer."""
    for node in tuple(graph):
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        readers = [use.node.outputs[0] for use in node.outputs[0].uses()]
        if value is None or not readers:
            continue
        for use in tuple(value.uses()):
            if use.node.op_type in (*MULTIPLY, *JOIN, *MOVE):
                use.node.replace_input_with(use.idx, readers[0])
    graph.sort()


def _sources(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Return the activations to quantize and, for each, the value whose range it has: itself, or
    the one that it was moved from.
    """
    sources: dict[ir.Value, ir.Value] = {}
    for node in graph:
        for value, source in _wanted(node, sources):
            is_quantized = _scale(value) is not None
            if not is_quantized and not any(
                use.node.op_type == "QuantizeLinear" for use in value.uses()
            ):
                sources.setdefault(value, source)
    return sources


def _wanted(
    node: ir.Node, sources: dict[ir.Value, ir.Value]
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the values that need 8 bits for an integer kernel of ``node``, with their sources."""
    data = [value for value in node.inputs if value is not None and constant(value) is None]
    output = _activated(node.outputs[0])
    if not data:
        return
    if _multiplies(node) and data[0].dtype == ir.DataType.FLOAT:
        yield data[0], data[0]
        if node.op_type == "Conv" and not output.is_graph_output():
            yield output, output
    elif output.is_graph_output():
        return
    elif node.op_type in MOVE and _has_8_bits(data[0], sources):
        yield node.outputs[0], sources.get(data[0], data[0])
    elif node.op_type in JOIN and all(_has_8_bits(value, sources) for value in data):
        yield output, output


def _multiplies(node: ir.Node) -> bool:
    """Check if a node multiplies with a quantized weight."""
    return node.op_type in MULTIPLY and _weight_scale(node.inputs[1]) is not None


def _has_8_bits(value: ir.Value, sources: dict[ir.Value, ir.Value]) -> bool:
    return value in sources or _scale(value) is not None


def _activated(value: ir.Value) -> ir.Value:
    """Return the output of the ReLU that is the only user of a value, or the value itself."""
    user = only_user(value)
    return user.outputs[0] if user is not None and user.op_type in ACTIVATE else value


def _quantize(graph: ir.Graph, value: ir.Value, span: Range) -> None:
    """Let all users of ``value`` see it in 8 bits."""
    name = f"{value.name}.activation"
    builder = Builder(graph)
    users = [(use.node, use.idx) for use in value.uses()]
    scale = builder.initializer(f"{name}.scale", span.scale)
    zero = builder.initializer(f"{name}.zero", span.zero)
    full = _before_activation(value)
    codes = builder.node("QuantizeLinear", [full, scale, zero], f"{name}.codes")
    rounded = builder.node("DequantizeLinear", [codes, scale, zero], f"{name}.value")
    for node, index in users:
        node.replace_input_with(index, rounded)
    producer = value.producer()
    if producer is None:
        builder.insert()
    else:
        graph.insert_after(producer, builder.nodes)


def _before_activation(value: ir.Value) -> ir.Value:
    """Return the input of the ReLU that computes ``value``: codes saturate at zero without it."""
    node = value.producer()
    if node is None or node.op_type not in ACTIVATE or node.inputs[0] is None:
        return value
    bounds = [constant(bound) for bound in node.inputs[1:]]
    if any(bound is None for bound in bounds):
        return value
    around_zero = not bounds or float(bounds[0]) <= 0
    return node.inputs[0] if around_zero else value


def _quantize_biases(graph: ir.Graph) -> None:
    """Store biases as int32 in units of the sums that they are added to, as the kernels need them.
    A bias that is too large stays in float, and its layer computes in float.
    """
    builder = Builder(graph)
    for node in tuple(graph):
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        input_scale = _scale(node.inputs[0])
        weight_scale = _weight_scale(node.inputs[1])
        bias = constant(node.inputs[2])
        if input_scale is None or weight_scale is None or bias is None or bias.ndim != 1:
            continue
        unit = (input_scale * weight_scale).astype(np.float32)  # (channels,)
        codes = np.rint(bias / unit)
        if np.abs(bias / unit).max() <= LARGEST_BIAS:
            name = f"{node.outputs[0].name}.bias"
            stored = builder.initializer(f"{name}.int32", codes.astype(np.int32))
            units = builder.initializer(f"{name}.unit", unit)
            value = builder.node("DequantizeLinear", [stored, units], name, axis=0)
            node.replace_input_with(2, value)
    builder.insert()


def _scale(value: ir.Value | None) -> Any:
    """Return the scale of a quantized activation; None for any other value."""
    node = _dequantizer(value)
    return (
        None if node is None or constant(node.inputs[0]) is not None else constant(node.inputs[1])
    )


def _weight_scale(value: ir.Value | None) -> Any:
    """Return the scales of a quantized weight; None for any other value."""
    node = _dequantizer(value)
    return None if node is None or constant(node.inputs[0]) is None else constant(node.inputs[1])


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that computes a value; None if it is computed otherwise."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None
