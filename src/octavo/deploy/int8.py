"""The form ``int8``, for integer kernels: int8 weights that are powers of two, batch norms in their
scales, activations of 8 bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.convenience import replace_all_uses_with
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from octavo.deploy.builder import Builder, parameter_layout
from octavo.deploy.checks import checked
from octavo.deploy.elements import fit_int8, integers
from octavo.deploy.forms import FormFile, Job
from octavo.deploy.graph import CompleteGraph, close, trace
from octavo.deploy.int8_activations import constant, only_user, quantize_activations
from octavo.network.forward import Inputs
from octavo.storage.quantized import Quantized

__all__ = ["decode", "fold_norms", "int8_graph", "is_exact", "make"]


def make(job: Job) -> FormFile:
    """Make the file and check it. Its activations are rounded, so its outputs differ from the
    network's: the difference is returned, and there is no limit on it.
    """
    layers = job.packed.layers
    batch = job.first_batch()
    graph, inexact = int8_graph(job.model, layers, job.batches)
    data, comparison = checked(graph, job.model, {}, batch)
    return FormFile(data, comparison, inexact)


def int8_graph(
    model: nn.Module, layers: Mapping[str, Quantized], batches: Sequence[Inputs]
) -> tuple[CompleteGraph, tuple[str, ...]]:
    """Return a graph with quantized weights and, around the layers that multiply, quantized
    activations, whose ranges come from ``batches``; and the layers whose weights are not exact.
    """
    graph = close(trace(model, layers, batches[0]), layers, decode)
    rounded = fold_norms(graph.model)
    _turn_weights(graph.model)
    quantize_activations(graph.model, batches)
    RemoveUnusedNodesPass()(graph.model)
    inexact = tuple(
        name
        for name, layer in layers.items()
        if graph.weights.get(name) in rounded or not is_exact(name, layer)
    )
    return graph, inexact


def is_exact(name: str, layer: Quantized) -> bool:
    """Check if int8 represents a layer's weights exactly."""
    _, _, exact = integers(layer.codebook, layer.codes, name)
    return exact


def decode(builder: Builder, name: str, layer: Quantized) -> ir.Value:
    """Add a layer's weights as int8 numbers that DequantizeLinear multiplies with their scales."""
    codes, scale, _ = integers(layer.codebook, layer.codes, name)
    rows = _Weight(codes.numpy(), scale.numpy(), 0).put(builder, layer.names[0])
    return parameter_layout(builder, layer, rows)


@dataclass(frozen=True)
class _Weight:
    """A weight in the graph: int8 codes times scales along an axis."""

    codes: NDArray[Any]
    scale: NDArray[Any]
    axis: int

    @classmethod
    def of(cls, value: ir.Value | None) -> "_Weight | None":
        """Read the weight that a value is; None if it is something else."""
        node = None if value is None else value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return None
        codes = constant(node.inputs[0])
        if codes is None:
            return None
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        scale = np.broadcast_to(constant(node.inputs[1]), codes.shape[axis])
        return cls(codes, scale, axis)

    def put(self, builder: Builder, name: str) -> ir.Value:
        """Add the weight as a new value."""
        codes = builder.initializer(f"{name}.int8", self.codes)
        scale = builder.initializer(f"{name}.scale", self.scale)
        zero = builder.initializer(f"{name}.zero", np.zeros(self.scale.shape, np.int8))
        return builder.node("DequantizeLinear", [codes, scale, zero], name, axis=self.axis)


def fold_norms(model: ir.Model) -> set[ir.Value | None]:
    """Fold the batch norms behind convolutions into the scales of their weights and into their
    biases. The codes stay powers of two.

    Returns:
        The weights that had to be rounded: where a norm's factor is negative, -128 becomes +128,
        which is no int8 number.

    """
    graph = model.graph
    builder = Builder(graph)
    rounded: set[ir.Value | None] = set()
    for node in tuple(graph):
        if node.op_type != "Conv":
            continue
        value = node.inputs[1]
        weight = _Weight.of(value)
        norm = only_user(node.outputs[0])
        if weight is not None and norm is not None and norm.op_type == "BatchNormalization":
            if not _fold(builder, node, weight, norm):
                rounded.add(value)
            replace_all_uses_with(norm.outputs[0], node.outputs[0], replace_graph_outputs=True)
            graph.remove(norm, safe=True)
    builder.insert()
    RemoveUnusedNodesPass()(model)
    return rounded


def _fold(builder: Builder, node: ir.Node, weight: _Weight, norm: ir.Node) -> bool:
    """Give a convolution the weight and the bias that have a batch norm in them.

    With factor = gamma / sqrt(variance + epsilon), the norm of a convolution w * x + b is
    (factor w) * x + (b - mean) factor + beta. Returns True if no number of the weight was rounded.
    """
    gamma, beta, mean, variance = (constant(v).astype(np.float64) for v in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    factor = gamma / np.sqrt(variance + epsilon)  # (channels,)
    # The factor's sign goes into the codes, its size into the scale. Where it is zero, all codes
    # become zero, and the scale stays positive.
    size = np.where(factor == 0, 1, np.abs(factor))
    sign = np.sign(factor).reshape(-1, *[1] * (weight.codes.ndim - 1))
    codes, divisor, exact = fit_int8(torch.from_numpy(weight.codes * sign))
    scale = (weight.scale * size * divisor.numpy()).astype(np.float32)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = constant(node.inputs[2]) if has_bias else 0.0
    shift = ((bias - mean) * factor + beta).astype(np.float32)
    name = f"{node.outputs[0].name}.folded"
    folded_weight = _Weight(codes.numpy(), scale, 0).put(builder, name)
    folded_bias = builder.initializer(f"{name}.bias", shift)
    node.resize_inputs(3)
    node.replace_input_with(1, folded_weight)
    node.replace_input_with(2, folded_bias)
    return exact


def _turn_weights(model: ir.Model) -> None:
    """Store transposed matrices as they are used: the kernels look for a weight right behind its
    DequantizeLinear.
    """
    graph = model.graph
    builder = Builder(graph)
    for node in tuple(graph):
        weight = _Weight.of(node.inputs[0]) if node.op_type == "Transpose" else None
        if weight is not None and weight.codes.ndim == 2:
            codes = np.ascontiguousarray(weight.codes.T)
            turned = _Weight(codes, weight.scale, 1 - weight.axis)
            value = turned.put(builder, f"{node.outputs[0].name}.turned")
            replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
    builder.insert()
    RemoveUnusedNodesPass()(model)
