"""The form ``fp8``: E4M3 elements, and a scale for each layer, channel or group of inputs."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from octavo.deploy.builder import Builder, channel_rows, parameter_layout
from octavo.deploy.elements import E4M3, elements
from octavo.deploy.floating import exported
from octavo.deploy.forms import FormFile, Job
from octavo.formats.rows import rows_by_exponent
from octavo.storage.quantized import Quantized

__all__ = ["decode", "make"]


def make(job: Job) -> FormFile:
    """Make the file: see :func:`octavo.deploy.floating.exported`."""
    return exported(job, decode)


def decode(builder: Builder, name: str, layer: Quantized) -> ir.Value:
    """Add a layer's weights as elements that DequantizeLinear multiplies with their scales."""
    codebook = layer.codebook
    element, scale = elements(codebook, layer.codes, E4M3, name)
    if codebook.group_size:
        element = rows_by_exponent(element, codebook.max_exponent, codebook.group_size)
        scale = scale.flatten()
    parameter = layer.names[0]
    values = builder.initializer(
        f"{parameter}.elements", _as_numpy(element), ir.DataType.FLOAT8E4M3FN
    )
    scales = builder.initializer(f"{parameter}.scale", scale.numpy())
    axis = {"axis": 0} if scale.dim() else {}
    rows = builder.node("DequantizeLinear", [values, scales], f"{parameter}.rows", **axis)
    return parameter_layout(builder, layer, channel_rows(builder, layer, rows))


def _as_numpy(element: Tensor) -> np.ndarray:
    """Convert to E4M3 numbers of numpy, which has none of its own."""
    return element.to(torch.float8_e4m3fn).view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
