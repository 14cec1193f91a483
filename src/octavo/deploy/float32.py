"""The form ``float``: plain float32 weights."""

import onnx_ir as ir

from octavo.deploy.builder import Builder
from octavo.deploy.floating import exported
from octavo.deploy.forms import FormFile, Job
from octavo.storage.quantized import Quantized

__all__ = ["decode", "make"]


def make(job: Job) -> FormFile:
    """Make the file: see :func:`octavo.deploy.floating.exported`."""
    return exported(job, decode)


def decode(builder: Builder, _: str, layer: Quantized) -> ir.Value:
    """Add a layer's weights as they are."""
    return builder.initializer(layer.names[0], layer.weight().numpy())
