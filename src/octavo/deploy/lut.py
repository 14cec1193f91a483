"""The form ``lut``: 4-bit codes (8-bit from 5 bits on) that look up their levels in a table."""

import ml_dtypes
import onnx_ir as ir

from octavo.deploy.builder import Builder, parameter_layout
from octavo.deploy.floating import exported
from octavo.deploy.forms import FormFile, Job
from octavo.storage.quantized import Quantized

__all__ = ["decode", "make"]


def make(job: Job) -> FormFile:
    """Make the file: see :func:`octavo.deploy.floating.exported`."""
    return exported(job, decode)


def decode(builder: Builder, _: str, layer: Quantized) -> ir.Value:
    """Add a layer's weights: Cast(codes) -> Gather(levels) -> Mul(scale of each channel).

    The product is exact: a level at a largest exponent of 0, times the channel's power of two. A
    layer with one largest exponent has a table of its own levels and no Mul.
    """
    parameter = layer.names[0]
    values = builder.node(
        "Gather", [_levels(builder, layer), _index(builder, layer)], f"{parameter}.unit", axis=0
    )
    if layer.codebook.max_exponent.dim():
        one_each_channel = (-1, *[1] * (layer.codes.dim() - 1))
        scale = layer.codebook.scale().view(one_each_channel).numpy()
        scales = builder.initializer(f"{parameter}.scale", scale)
        values = builder.node("Mul", [values, scales], f"{parameter}.rows")
    return parameter_layout(builder, layer, values)


def _levels(builder: Builder, layer: Quantized) -> ir.Value:
    """Add the table of levels; layers with a scale for each channel share those of their width."""
    codebook = layer.codebook
    if codebook.max_exponent.dim():
        return builder.initializer(f"levels.{codebook.width!s}", codebook.unit_levels().numpy())
    return builder.initializer(f"{layer.names[0]}.levels", codebook.levels().numpy())


def _index(builder: Builder, layer: Quantized) -> ir.Value:
    """Add the codes, and their conversion to the integers that Gather takes."""
    name = f"{layer.names[0]}.codes"
    codes = layer.codes.numpy()
    if layer.codebook.width.bits <= 4:
        stored = builder.initializer(name, codes.astype(ml_dtypes.uint4), ir.DataType.UINT4)
    else:
        stored = builder.initializer(name, codes, ir.DataType.UINT8)
    return builder.node("Cast", [stored], f"{layer.names[0]}.index", to=ir.DataType.INT32)
