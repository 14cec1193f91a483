"""From a network to an ONNX graph: traced by torch, its quantized weights left open, so that no
optimization touches them.
"""

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.convenience import replace_all_uses_with
from torch import Tensor, nn

from octavo.activations.quantizer import InputFormat, input_quantizers
from octavo.errors import ExportError, brief
from octavo.network.calling import Inputs, arguments, mapped, where_raised
from octavo.storage.quantized import Quantized

__all__ = ["Builder", "Closed", "Decode", "OpenGraph", "close", "quiet", "trace"]

LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
BATCH = "batch"


@dataclass(frozen=True)
class OpenGraph:
    """A graph whose quantized weights are inputs.

    Attributes:
        model: the graph.
        weights: layer name to its open inputs, one for each of the weight's names that the graph
            uses.

    """

    model: ir.Model
    weights: Mapping[str, list[ir.Value]]


@dataclass(frozen=True)
class Closed:
    """A graph that is complete.

    Attributes:
        model: the graph.
        weights: layer name to its weight's value; layers that the graph does not use are missing.

    """

    model: ir.Model
    weights: Mapping[str, ir.Value]


class Builder:
    """New nodes and initializers of a graph, ahead of all that it has."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = []

    def initializer(self, name: str, array: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """A constant, the same one for the same name; ``dtype`` is for types that numpy itself does
        not have.
        """
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.Tensor(np.asarray(array, order="C"), dtype=dtype, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def node(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        """The one output, called ``name``, of a new node."""
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def insert(self) -> None:
        """Put the new nodes in front."""
        self.graph.insert_before(self.graph[0], self.nodes)
        self.nodes = []


Decode = Callable[
    [Builder, str, Quantized], ir.Value
]  # what gives a layer's weight, from its name and its codes


def trace(
    model: nn.Module, layers: Mapping[str, Quantized], example: Inputs, opset: int
) -> OpenGraph:
    """The graph of ``model``, simplified, its first dimension free where the model allows.

    Raises:
        ExportError: torch cannot export the model; the message names the layer.

    """
    args, kwargs = arguments(example)
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ExportError(f"example: {type(model).__name__} does not take it: {error}") from error
    free = _free_batch(bound)
    with quiet(), torch.no_grad(), _inputs_as_nodes(model):
        program = _converted(_program(model, bound, free), opset)
        weights = {name: _open(program.model.graph, name, layer) for name, layer in layers.items()}
        program.optimize()
    _tidy(program.model)
    return OpenGraph(
        program.model,
        {name: [value for value in values if value.uses()] for name, values in weights.items()},
    )


def close(opened: OpenGraph, layers: Mapping[str, Quantized], decode: Decode) -> Closed:
    """Put the weights into the graph: nodes that ``decode`` makes."""
    graph = opened.model.graph
    closed: dict[str, ir.Value] = {}
    builder = Builder(graph)
    for name, values in opened.weights.items():
        if values:
            closed[name] = decode(builder, name, layers[name])
            replace_all_uses_with(values, [closed[name]] * len(values), replace_graph_outputs=True)
    names = {name for layer in layers.values() for name in layer.names}
    for value in [value for value in graph.inputs if value.name in names]:
        graph.inputs.remove(value)
    builder.insert()
    return Closed(opened.model, closed)


@contextlib.contextmanager
def _inputs_as_nodes(model: nn.Module) -> Iterator[None]:
    """While this lasts, the model's own quantizers of activations are traced as QuantizeLinear and
    DequantizeLinear.
    """
    quantizers = list(input_quantizers(model).values())
    for quantizer in quantizers:
        quantizer.forward = partial(_rounded, quantizer.format, float(quantizer.effective_scale()))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward


def _rounded(form: InputFormat, step: float, inputs: Tensor) -> Tensor:
    """What the quantizer computes, as nodes of uint8; fewer than 8 bits saturate before."""
    if form.bits < 8:
        inputs = inputs.clamp(form.lowest * step, form.highest * step)
    around = [torch.tensor(step), torch.tensor(-form.lowest, dtype=torch.uint8)]
    symbolic = partial(torch.onnx.ops.symbolic, shape=inputs.shape)
    codes = symbolic("QuantizeLinear", (inputs, *around), dtype=torch.uint8)
    return symbolic("DequantizeLinear", (codes, *around), dtype=torch.float32)


def _program(
    model: nn.Module, bound: inspect.BoundArguments, free: Any
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            model, bound.args, bound.kwargs, dynamic_shapes=free, strict=False
        )
    except Exception as error:
        place = where_raised(model, error) or type(model).__name__
        raise ExportError(f"{place}: torch cannot trace it: {brief(error)}") from error


def _converted(program: torch.export.ExportedProgram, opset: int) -> torch.onnx.ONNXProgram:
    try:
        found = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=opset, verbose=False
        )
    except Exception as error:
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        where = next(
            (place for link in chain if (place := _where(link)) is not None), "the network"
        )
        raise ExportError(f"{where}: has no form in ONNX: {brief(chain[-1])}") from error
    return cast("torch.onnx.ONNXProgram", found)


def _where(error: BaseException) -> str | None:
    """The module of the node at which the exporter gave up."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and (stack := node.meta.get("nn_module_stack")):
            name, kind = list(stack.values())[-1]
            return f"{name or 'the model itself'} ({str(kind).rpartition('.')[2]})"
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No word of what the exporter warns of: what matters is checked afterwards."""
    loggers = [(logging.getLogger(name), logging.getLogger(name).level) for name in LOGGERS]
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


def _open(graph: ir.Graph, name: str, layer: Quantized) -> list[ir.Value]:
    """Make inputs of the initializers that hold a layer's weight."""
    found = [graph.initializers.pop(key) for key in layer.names if key in graph.initializers]
    if not found and any(
        _same_numbers(value, layer) for value in graph.initializers.values()
    ):  # or else it is not used
        raise ExportError(
            f"{name}: its weight is in the graph as a constant; the network must use the parameter itself"
        )
    for value in found:
        value.const_value = None
        graph.inputs.append(value)
    return found


def _same_numbers(value: ir.Value, layer: Quantized) -> bool:
    """Whether a constant has the numbers of a layer's weight, in whatever order."""
    if value.const_value is None or value.const_value.size != layer.codes.numel():
        return False
    return np.array_equal(
        np.sort(value.const_value.numpy(), axis=None), np.sort(layer.weight().numpy(), axis=None)
    )


def _tidy(model: ir.Model) -> None:
    """Take out what would be larger than a small network: where each node came from. And call the
    batch by its name.
    """
    graph = model.graph
    first = next((v.shape[0] for v in graph.inputs if v.shape), None)
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (
        *graph.inputs,
        *graph.initializers.values(),
        *(v for node in graph.all_nodes() for v in node.outputs),
    ):
        value.metadata_props.clear()
        if value.shape and isinstance(first, ir.SymbolicDim):
            value.shape = ir.Shape([BATCH if dim == first else dim for dim in value.shape])


def _free_batch(bound: inspect.BoundArguments) -> Any:
    """Which dimensions of the arguments torch may leave open: the first, where it is the
    batch's.
    """
    found: list[int] = []
    mapped(
        bound.arguments,
        lambda leaf: found.extend(leaf.shape[:1] if isinstance(leaf, Tensor) else ()),
    )
    batch = found[0] if found else 0
    bound.arguments.update(mapped(bound.arguments, lambda leaf: _plain(leaf, batch)))
    return mapped(
        bound.arguments,
        lambda leaf: {0: torch.export.Dim.AUTO} if _leads(leaf, max(2, batch)) else None,
    )


def _leads(leaf: Any, batch: int) -> bool:
    """Whether the first dimension of what may be a tensor is the batch's."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def _plain(leaf: Any, batch: int) -> Any:
    """What may be a tensor as the tracer wants it: dense, and several inputs, as it would take a
    batch of one for a constant.
    """
    leaf = torch.cat([leaf, leaf]) if batch == 1 and _leads(leaf, 1) else leaf
    return leaf.detach().contiguous() if isinstance(leaf, Tensor) else leaf
