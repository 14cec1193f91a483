"""The forms that compute in float32 from small constants: codes that look up their levels, FP8
elements, plain float32.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from octavo.deploy.elements import E4M3, elements
from octavo.deploy.graph import Builder, Closed, close, trace
from octavo.network.calling import Inputs
from octavo.storage.quantized import Quantized

__all__ = ["float_graph", "fp8_graph", "in_place", "lut_graph"]


def lut_graph(
    model: nn.Module, layers: Mapping[str, Quantized], example: Inputs, opset: int
) -> Closed:
    """Codes of 4 bits (8 from 5 bits on), looked up in a table of levels."""
    return close(trace(model, layers, example, opset), layers, _looked_up)


def fp8_graph(
    model: nn.Module, layers: Mapping[str, Quantized], example: Inputs, opset: int
) -> Closed:
    """E4M3 elements and a scale for each layer or channel."""
    return close(trace(model, layers, example, opset), layers, _from_fp8)


def float_graph(
    model: nn.Module, layers: Mapping[str, Quantized], example: Inputs, opset: int
) -> Closed:
    """The weights as they are."""
    return close(
        trace(model, layers, example, opset),
        layers,
        lambda builder, _, layer: builder.initializer(layer.names[0], layer.weight().numpy()),
    )


def in_place(builder: Builder, layer: Quantized, value: ir.Value) -> ir.Value:
    """Weights with output channels first, in the parameter's own layout: see
    ``octavo.network.layers.channels_back``.
    """
    if not layer.groups:
        return value
    name = layer.names[0]
    outputs, inputs, *kernel = layer.codes.shape
    split = builder.initializer(
        f"{name}.split", np.array([layer.groups, outputs // layer.groups, inputs, *kernel])
    )
    shape = builder.initializer(
        f"{name}.shape", np.array([layer.groups * inputs, outputs // layer.groups, *kernel])
    )
    parts = builder.node("Reshape", [value, split], f"{name}.parts")
    order = [0, 2, 1, *range(3, 3 + len(kernel))]
    return builder.node(
        "Reshape",
        [builder.node("Transpose", [parts], f"{name}.turned", perm=order), shape],
        f"{name}.value",
    )


def _looked_up(builder: Builder, _: str, layer: Quantized) -> ir.Value:
    """Exact: a level of the layer, or a level of n1 = 0 times the channel's power of two."""
    codebook, top, name = layer.codebook, layer.codebook.max_exponent, layer.names[0]
    table = (
        (f"levels.{codebook.width!s}", codebook.unit_levels())
        if top.dim()
        else (f"{name}.levels", codebook.levels())
    )
    levels = builder.initializer(table[0], table[1].numpy())
    small = codebook.bits <= 4
    codes = layer.codes.numpy().astype(ml_dtypes.uint4) if small else layer.codes.numpy()
    value = builder.initializer(
        f"{name}.codes", codes, ir.DataType.UINT4 if small else ir.DataType.UINT8
    )
    value = builder.node("Cast", [value], f"{name}.index", to=ir.DataType.INT32)
    value = builder.node("Gather", [levels, value], f"{name}.unit", axis=0)
    if top.dim():
        scale = codebook.scale().view(-1, *[1] * (layer.codes.dim() - 1))
        value = builder.node(
            "Mul", [value, builder.initializer(f"{name}.scale", scale.numpy())], f"{name}.rows"
        )
    return in_place(builder, layer, value)


def _from_fp8(builder: Builder, name: str, layer: Quantized) -> ir.Value:
    element, scale = elements(layer.codebook, layer.codes, E4M3, name)
    name = layer.names[0]
    values = builder.initializer(f"{name}.elements", fp8(element), ir.DataType.FLOAT8E4M3FN)
    scales = builder.initializer(f"{name}.scale", scale.numpy())
    axis = {"axis": 0} if scale.dim() else {}
    return in_place(
        builder, layer, builder.node("DequantizeLinear", [values, scales], f"{name}.rows", **axis)
    )


def fp8(element: Tensor) -> np.ndarray:
    """E4M3 numbers as numpy has them."""
    return element.to(torch.float8_e4m3fn).view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
