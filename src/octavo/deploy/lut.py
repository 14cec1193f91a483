"""The form ``lut``: 4-bit codes (8-bit from 5 bits on) that look up their levels in a table."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from octavo.deploy.builder import Builder, channel_rows, parameter_layout
from octavo.deploy.floating import exported
from octavo.deploy.forms import FormFile, Job
from octavo.formats.codebook import power
from octavo.formats.rows import rows_by_exponent
from octavo.storage.quantized import Quantized

__all__ = ["decode", "make"]


def make(job: Job) -> FormFile:
    """Make the file: see :func:`octavo.deploy.floating.exported`."""
    return exported(job, decode)


def decode(builder: Builder, _: str, layer: Quantized) -> ir.Value:
    """Add a layer's weights: Cast(codes) -> Gather(levels) -> Mul(scale of each channel or group).

    The product is exact: a level at a largest exponent of 0, times the channel's power of two. A
    layer with one largest exponent has a table of its own levels and no Mul.
    """
    parameter = layer.names[0]
    codebook = layer.codebook
    # A row for each group, where there are groups.
    codes = layer.codes
    if codebook.group_size:
        codes = rows_by_exponent(codes, codebook.max_exponent, codebook.group_size)
    index = _index(builder, layer, codes.numpy())
    values = builder.node("Gather", [_levels(builder, layer), index], f"{parameter}.unit", axis=0)
    if codebook.max_exponent.dim():
        one_each_row = (-1, *[1] * (codes.dim() - 1))
        scale = power(codebook.max_exponent).view(one_each_row).numpy()
        scales = builder.initializer(f"{parameter}.scale", scale)
        values = builder.node("Mul", [values, scales], f"{parameter}.rows")
    return parameter_layout(builder, layer, channel_rows(builder, layer, values))


def _levels(builder: Builder, layer: Quantized) -> ir.Value:
    """Add the table of levels; layers with several scales share that of their width."""
    codebook = layer.codebook
    if codebook.max_exponent.dim():
        return builder.initializer(f"levels.{codebook.width!s}", codebook.unit_levels().numpy())
    return builder.initializer(f"{layer.names[0]}.levels", codebook.levels().numpy())


def _index(builder: Builder, layer: Quantized, codes: NDArray[np.uint8]) -> ir.Value:
    """Add the codes, and their conversion to the integers that Gather takes."""
    name = f"{layer.names[0]}.codes"
    if layer.codebook.width.bits <= 4:
        stored = builder.initializer(name, codes.astype(ml_dtypes.uint4), ir.DataType.UINT4)
    else:
        stored = builder.initializer(name, codes, ir.DataType.UINT8)
    return builder.node("Cast", [stored], f"{layer.names[0]}.index", to=ir.DataType.INT32)
