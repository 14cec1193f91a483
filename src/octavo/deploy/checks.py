"""The checks that every ONNX file must pass: the rules of ONNX, the weights bit for bit; and the
comparison of its outputs with the network's.
"""

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from octavo.deploy.comparison import Comparison, compare
from octavo.deploy.graph import CompleteGraph
from octavo.deploy.runtime import OnnxModel
from octavo.errors import ExportError, brief
from octavo.network.calls import call_alone, undisturbed
from octavo.network.conduct import close, conduct_of
from octavo.network.forward import Inputs, arguments, observing
from octavo.storage.quantized import Quantized

__all__ = ["checked"]


def checked(
    graph: CompleteGraph, model: nn.Module, layers: Mapping[str, Quantized], batch: Inputs
) -> tuple[bytes, Comparison]:
    """Return the content of a graph's file, and its outputs beside those of the network.

    Raises:
        ExportError: the graph breaks a rule of ONNX, ONNX Runtime cannot load or run it, it
            computes another weight than one of ``layers``, or the network does not return the same
            for the same inputs.

    """
    try:
        proto = ir.to_proto(graph.model)
        data: bytes = proto.SerializeToString()
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__}: not a sound ONNX file: {brief(error)}"
        ) from error
    _check_weights(graph, proto, layers, batch)
    expected = _expected(model, batch)
    args, kwargs = arguments(batch)
    computed = OnnxModel(data)(*args, **kwargs)
    return data, compare(expected, computed)


def _expected(model: nn.Module, batch: Inputs) -> Any:
    """Return the outputs of the network, which must be a function of its inputs alone, as those of
    a file are.
    """
    with observing(model):
        conduct = conduct_of(model, [batch, batch])
        with undisturbed(model, conduct.written):
            expected = call_alone(model, batch, 0)
        with undisturbed(model, conduct.written):
            otherwise = call_alone(model, batch, 1)
    kind = type(model).__name__
    if not conduct.repeats or not close(expected, otherwise):
        raise ExportError(
            f"{kind}: expected the same outputs whenever it gets the same inputs, got others in "
            "each call, so no file can be checked against it; switch off what draws random numbers "
            "in evaluation, such as dropout; nothing was written"
        )
    if conduct.carries:
        state = ", ".join(sorted(".".join(filter(None, slot)) for slot in conduct.written))
        raise ExportError(
            f"{kind}: expected outputs that depend on the inputs alone, got some that depend on "
            f"the call before, through {state}; an ONNX file keeps no state between calls: make "
            "the state an input and an output; nothing was written"
        )
    return expected


def _check_weights(
    graph: CompleteGraph, proto: onnx.ModelProto, layers: Mapping[str, Quantized], batch: Inputs
) -> None:
    """Raise ExportError unless ONNX Runtime computes each weight as it was packed, bit for bit."""
    names = {
        name: value.name for name, value in graph.weights.items() if name in layers and value.name
    }
    if not names:
        return
    with_weights = onnx.ModelProto()  # the graph with its weights as outputs too
    with_weights.CopyFrom(proto)
    with_weights.graph.output.extend(onnx.ValueInfoProto(name=value) for value in names.values())
    runner = OnnxModel(with_weights.SerializeToString())
    values = runner.run(*arguments(batch), list(names.values()))
    for name, value in zip(names, values, strict=True):
        if not torch.equal(value, layers[name].weight()):
            raise ExportError(
                f"{name}: ONNX Runtime computes other weights than were packed; nothing was written"
            )
