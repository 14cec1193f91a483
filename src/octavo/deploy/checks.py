"""What an ONNX file must pass: the rules of ONNX, the weights bit for bit, and the network's
outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from torch import nn

from octavo.deploy.graph import Closed
from octavo.deploy.runtime import OnnxModel, agreement, differences
from octavo.errors import ExportError, brief
from octavo.network.calling import Inputs, arguments, call
from octavo.storage.quantized import Quantized

__all__ = ["Found", "checked"]


@dataclass(frozen=True)
class Found:
    """How ONNX Runtime's outputs compare with PyTorch's.

    Attributes:
        largest: the largest difference, in terms of the largest output.
        mean: the mean difference, likewise.
        agreement: the share of predicted classes that are the same.

    """

    largest: float
    mean: float
    agreement: float


def checked(
    closed: Closed, model: nn.Module, layers: Mapping[str, Quantized], batch: Inputs
) -> tuple[bytes, Found]:
    """The graph as a file, and what was found: see :class:`Found`.

    Raises:
        ExportError: it breaks a rule of ONNX, ONNX Runtime refuses it, or the weight of one of
            ``layers`` is another there.

    """
    try:
        proto = ir.to_proto(closed.model)
        data: bytes = proto.SerializeToString()
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__}: not a sound ONNX file: {brief(error)}"
        ) from error
    args, kwargs = arguments(batch)
    _check_weights(closed, proto, layers, batch)
    with torch.no_grad():
        expected, got = call(model, batch), OnnxModel(data)(*args, **kwargs)
    return data, Found(*differences(expected, got), agreement(expected, got))


def _check_weights(
    closed: Closed, proto: onnx.ModelProto, layers: Mapping[str, Quantized], batch: Inputs
) -> None:
    """ONNX Runtime must compute every weight as it was packed, to the last bit."""
    names = {
        name: value.name for name, value in closed.weights.items() if name in layers and value.name
    }
    if not names:
        return
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.extend(onnx.ValueInfoProto(name=value) for value in names.values())
    values = OnnxModel(shown.SerializeToString()).run(*arguments(batch), list(names.values()))
    for name, value in zip(names, values, strict=True):
        if not torch.equal(value, layers[name].weight()):
            raise ExportError(
                f"{name}: ONNX Runtime computes other weights than were packed; nothing was written"
            )
