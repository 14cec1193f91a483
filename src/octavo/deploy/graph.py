"""From a network to an ONNX graph: torch traces it while its quantized weights are open inputs, so
that no optimization touches them; afterwards nodes that decode the weights close the graph.
"""

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.convenience import replace_all_uses_with
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from octavo.activations.quantizer import InputFormat, input_quantizers
from octavo.deploy.builder import Builder
from octavo.errors import ExportError, brief
from octavo.network.forward import Inputs, arguments, where_raised
from octavo.network.nested import leaves, mapped
from octavo.storage.quantized import Quantized

__all__ = ["CompleteGraph", "Decode", "OpenGraph", "close", "quiet", "trace"]

LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
OPSET = 21  # the version of ONNX's operators
BATCH = "batch"  # the name of the free first dimension

# Models of transformers return their keys and values in an object that torch does not know.
CACHE_ADVICE = " (it returns a cache: set model.config.use_cache = False)"


@dataclass(frozen=True)
class OpenGraph:
    """A graph whose quantized weights are inputs.

    Attributes:
        model: the graph.
        weights: by layer name, its open inputs: one for each of the weight's names that the graph
            uses.

    """

    model: ir.Model
    weights: Mapping[str, list[ir.Value]]


@dataclass(frozen=True)
class CompleteGraph:
    """A complete graph.

    Attributes:
        model: the graph.
        weights: by layer name, the value that is its weight; a layer that the graph does not use
            is missing.

    """

    model: ir.Model
    weights: Mapping[str, ir.Value]


# Adds the nodes that compute the weights of a layer of this name, and returns their last value.
Decode: TypeAlias = Callable[[Builder, str, Quantized], ir.Value]


def trace(model: nn.Module, layers: Mapping[str, Quantized], example: Inputs) -> OpenGraph:
    """Trace and simplify ``model``; the first dimension of its inputs is free if the model allows.

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
        program = _converted(_program(model, bound, free))
        opened = {name: _open(program.model.graph, name, layer) for name, layer in layers.items()}
        program.optimize()
    _tidy(program.model)
    used = {name: [value for value in values if value.uses()] for name, values in opened.items()}
    return OpenGraph(program.model, used)


def close(opened: OpenGraph, layers: Mapping[str, Quantized], decode: Decode) -> CompleteGraph:
    """Close the graph: the nodes of ``decode`` replace the open weights."""
    graph = opened.model.graph
    computed: dict[str, ir.Value] = {}
    builder = Builder(graph)
    for name, values in opened.weights.items():
        if values:
            computed[name] = decode(builder, name, layers[name])
            weights = [computed[name]] * len(values)
            replace_all_uses_with(values, weights, replace_graph_outputs=True)
    opened_names = {name for layer in layers.values() for name in layer.names}
    for value in tuple(graph.inputs):
        if value.name in opened_names:
            graph.inputs.remove(value)
    builder.insert()
    return CompleteGraph(opened.model, computed)


@contextlib.contextmanager
def _inputs_as_nodes(model: nn.Module) -> Iterator[None]:
    """Let the model's quantizers of activations be traced as QuantizeLinear and
    DequantizeLinear while this lasts.
    """
    quantizers = list(input_quantizers(model).values())
    for quantizer in quantizers:
        scale = float(quantizer.effective_scale())
        rounded = partial(_rounded, quantizer.format, scale)
        quantizer.forward = rounded  # type: ignore[method-assign]
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward


def _rounded(form: InputFormat, scale: float, inputs: Tensor) -> Tensor:
    """Compute what the quantizer does by nodes of uint8; fewer than 8 bits are clipped before."""
    if form.bits < 8:
        inputs = inputs.clamp(form.lowest * scale, form.highest * scale)
    constants = (
        torch.tensor(scale, dtype=torch.float32),
        torch.tensor(-form.lowest, dtype=torch.uint8),
    )
    symbolic = partial(torch.onnx.ops.symbolic, shape=inputs.shape)
    codes = symbolic("QuantizeLinear", (inputs, *constants), dtype=torch.uint8)
    return symbolic("DequantizeLinear", (codes, *constants), dtype=torch.float32)


def _program(
    model: nn.Module, bound: inspect.BoundArguments, free: Any
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            model, bound.args, bound.kwargs, dynamic_shapes=free, strict=False
        )
    except Exception as error:
        name = where_raised(model, error) or type(model).__name__
        advice = CACHE_ADVICE if "Cache" in str(error) else ""
        raise ExportError(f"{name}: torch cannot trace it{advice}: {brief(error)}") from error


def _converted(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    try:
        converted = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False
        )
    except Exception as error:
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        modules = [name for name in map(_where, chain) if name is not None]
        module = modules[0] if modules else "the network"
        raise ExportError(f"{module}: has no form in ONNX: {brief(chain[-1])}") from error
    return cast("torch.onnx.ONNXProgram", converted)


def _where(error: BaseException) -> str | None:
    """Return the module of the node at which the exporter gave up, if the error has one."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and (stack := node.meta.get("nn_module_stack")):
            name, kind = list(stack.values())[-1]
            return f"{name or 'the model itself'} ({str(kind).rpartition('.')[2]})"
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings: the file is checked afterwards."""
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
    """Turn the initializers that are a layer's weight into inputs of the graph.

    A layer that the network does not use has none; but its numbers in another constant are an
    error, as that constant would stay in float.
    """
    opened = [graph.initializers.pop(key) for key in layer.names if key in graph.initializers]
    if not opened and any(_same_numbers(value, layer) for value in graph.initializers.values()):
        raise ExportError(
            f"{name}: its weight is in the graph as a constant; "
            f"the network must use the parameter itself"
        )
    for value in opened:
        value.const_value = None
        graph.inputs.append(value)
    return opened


def _same_numbers(value: ir.Value, layer: Quantized) -> bool:
    """Check if a constant has the numbers of a layer's weight, in whatever order."""
    if value.const_value is None or value.const_value.size != layer.codes.numel():
        return False
    constant = np.sort(value.const_value.numpy(), axis=None)
    return np.array_equal(constant, np.sort(layer.weight().numpy(), axis=None))


def _tidy(model: ir.Model) -> None:
    """Remove the notes on where each node came from, which can be larger than a small network, and
    name the free dimension.
    """
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    graph = model.graph
    free = next((value.shape[0] for value in graph.inputs if value.shape), None)
    computed = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *computed):
        value.metadata_props.clear()  # the pass leaves these
        if value.shape and isinstance(free, ir.SymbolicDim):
            value.shape = ir.Shape([BATCH if dim == free else dim for dim in value.shape])


def _free_batch(bound: inspect.BoundArguments) -> Any:
    """Return the dimensions of the arguments that torch may leave open: the first, where it is the
    batch's. The arguments become dense tensors of at least two inputs.
    """
    tensors = [leaf for leaf in leaves(bound.arguments) if isinstance(leaf, Tensor)]
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 0)
    bound.arguments.update(mapped(bound.arguments, lambda leaf: _plain(leaf, batch)))
    batch = max(2, batch)
    free = {0: torch.export.Dim.AUTO}
    return mapped(bound.arguments, lambda leaf: free if _leads(leaf, batch) else None)


def _leads(leaf: Any, batch: int) -> bool:
    """Check if an argument is a tensor whose first dimension is the batch's."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def _plain(leaf: Any, batch: int) -> Any:
    """Return an argument as the tracer needs it: dense, and with two inputs instead of one, as it
    would take a batch of one for a constant.
    """
    if not isinstance(leaf, Tensor):
        return leaf
    if batch == 1 and _leads(leaf, 1):
        leaf = torch.cat([leaf, leaf])
    return leaf.detach().contiguous()
