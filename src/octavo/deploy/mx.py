"""MXFP4 and MXFP8 tensors (OCP Microscaling Formats 1.0): a safetensors file in torch's own types,
for kernels of others to read.

A layer's weight is a matrix, a row for each output channel. Of a layer ``L`` the file holds
``L.weight``, E2M1 elements, two in a byte, the first in the low bits (2 to 4 bits), or E4M3
elements (5 and 6 bits); and ``L.weight_scale``, an E8M0 scale for every 32 elements of a row.
    Everything else is there under its own name. The header's ``octavo.mx`` has the weights' shapes.
"""

import json
import tempfile
from math import prod
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from octavo.deploy.elements import E2M1, E2M1_NUMBERS, E4M3, Format, elements
from octavo.errors import ExportError
from octavo.network.layers import channels_back
from octavo.storage.packed import Packed
from octavo.storage.quantized import Quantized

__all__ = ["BLOCK", "read_mx", "to_mx"]

BLOCK = 32
HEADER = "octavo.mx"


def to_mx(packed: Packed) -> bytes:
    """The file, checked: what it holds dequantizes to exactly the packed weights.

    Raises:
        ExportError: a layer that the formats cannot hold; the message names it.

    """
    tensors = {
        name: value.clone(memory_format=torch.contiguous_format)
        for names, value in packed.floats
        for name in names
    }
    rows = {}
    for name, layer in packed.layers.items():
        parameter = layer.names[0]
        tensors[parameter], tensors[f"{parameter}_scale"] = _blocks(name, layer)
        rows[parameter] = {
            "shape": list(layer.codes.shape),
            "groups": layer.groups,
            "names": list(layer.names),
        }
    data = safetensors.torch.save(tensors, {HEADER: json.dumps(rows)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.safetensors"
        path.write_bytes(data)
        held = read_mx(path)
    for name, layer in packed.layers.items():
        if not torch.equal(held[layer.names[0]], layer.weight()):
            raise ExportError(
                f"{name}: {_format(layer).name} with E8M0 scales does not hold its weights exactly"
            )
    return data


def read_mx(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a file by its name in the model's state dict, dequantized to float32."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        rows = json.loads(file.metadata()[HEADER])
    for parameter, row in rows.items():
        stored, scales = tensors.pop(parameter), tensors.pop(f"{parameter}_scale").float()
        columns = prod(row["shape"][1:])
        elements = _from_e2m1(stored) if stored.dtype == torch.float4_e2m1fn_x2 else stored.float()
        matrix = elements[:, :columns] * scales.repeat_interleave(BLOCK, 1)[:, :columns]
        tensors |= dict.fromkeys(
            row["names"], channels_back(matrix.view(row["shape"]), row["groups"])
        )
    return tensors


def _format(layer: Quantized) -> Format:
    return E2M1 if layer.codebook.bits <= 4 else E4M3


def _blocks(name: str, layer: Quantized) -> tuple[Tensor, Tensor]:
    """A layer's elements and scales."""
    element, scale = elements(layer.codebook, layer.codes, _format(layer), name)
    matrix = element.reshape(len(element), -1)
    scales = scale.reshape(-1, 1).expand(len(matrix), -(-matrix.shape[1] // BLOCK))
    stored = _to_e2m1(matrix) if _format(layer) is E2M1 else matrix.to(torch.float8_e4m3fn)
    return stored, scales.to(torch.float8_e8m0fnu).contiguous()


def _to_e2m1(matrix: Tensor) -> Tensor:
    """Two elements in a byte; a row of odd length ends in a zero."""
    codes = (
        torch.searchsorted(E2M1_NUMBERS, matrix.abs()).to(torch.uint8)
        | (matrix < 0).to(torch.uint8) << 3
    )
    codes = nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return (codes[:, ::2] | codes[:, 1::2] << 4).view(torch.float4_e2m1fn_x2)


def _from_e2m1(stored: Tensor) -> Tensor:
    byte = stored.view(torch.uint8)
    codes = torch.stack([byte & 15, byte >> 4], -1).flatten(1)
    return E2M1_NUMBERS[(codes & 7).int()] * torch.where(codes > 7, -1.0, 1.0)
