"""The form ``mx``: MXFP4 and MXFP8 tensors (OCP Microscaling Formats 1.0) in a safetensors file, in
torch's own types, for the kernels of other libraries.

The weight of a layer ``L`` is a matrix with a row for each output channel. The file stores its
elements as ``L.weight``: E2M1, two in a byte, the first in the low bits (2 to 4 bits), or E4M3 (5
and 6 bits). It stores an E8M0 scale for every 32 elements of a row as ``L.weight_scale``. Every
other tensor has its own name. The header's ``octavo.mx`` has the shapes of the weights.
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
from octavo.deploy.forms import FormFile, Job
from octavo.errors import ExportError
from octavo.network.layers import channels_back
from octavo.storage.quantized import Quantized

__all__ = ["BLOCK", "make", "read_mx"]

BLOCK = 32
HEADER = "octavo.mx"


def make(job: Job) -> FormFile:
    """Make the file, and check that its elements and scales are exactly the packed weights.

    Raises:
        ExportError: the formats cannot represent a layer; the message names it.

    """
    packed = job.packed
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
    data = safetensors.torch.save(tensors, {HEADER: json.dumps(rows, allow_nan=False)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.safetensors"
        path.write_bytes(data)
        written = read_mx(path)
    for name, layer in packed.layers.items():
        if not torch.equal(written[layer.names[0]], layer.weight()):
            raise ExportError(
                f"{name}: {_format(layer).name} with E8M0 scales does not hold its weights exactly"
            )
    return FormFile(data)


def read_mx(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a file by its name in the model's state dict, dequantized to float32."""
    with safetensors.safe_open(path, "pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        rows = json.loads(file.metadata()[HEADER])
    for parameter, row in rows.items():
        stored = tensors.pop(parameter)
        scales = tensors.pop(f"{parameter}_scale").float()
        columns = prod(row["shape"][1:])
        is_fp4 = stored.dtype == torch.float4_e2m1fn_x2
        numbers = _from_e2m1(stored) if is_fp4 else stored.float()
        matrix = numbers[:, :columns] * scales.repeat_interleave(BLOCK, 1)[:, :columns]
        tensors |= dict.fromkeys(
            row["names"], channels_back(matrix.view(row["shape"]), row["groups"])
        )
    return tensors


def _format(layer: Quantized) -> Format:
    return E2M1 if layer.codebook.width.bits <= 4 else E4M3


def _blocks(name: str, layer: Quantized) -> tuple[Tensor, Tensor]:
    """Return the elements and the scales of a layer as they are stored."""
    element, scale = elements(layer.codebook, layer.codes, _format(layer), name)
    matrix = element.reshape(len(element), -1)
    scales = scale.reshape(-1, 1).expand(len(matrix), -(-matrix.shape[1] // BLOCK))
    stored = _to_e2m1(matrix) if _format(layer) is E2M1 else matrix.to(torch.float8_e4m3fn)
    return stored, scales.to(torch.float8_e8m0fnu).contiguous()


def _to_e2m1(matrix: Tensor) -> Tensor:
    """Store two elements in a byte; a row of odd length ends in a zero."""
    magnitude = torch.searchsorted(E2M1_NUMBERS, matrix.abs()).to(torch.uint8)  # 3 bits
    sign = (matrix < 0).to(torch.uint8)
    codes = magnitude | sign << 3
    codes = nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return (codes[:, ::2] | codes[:, 1::2] << 4).view(torch.float4_e2m1fn_x2)


def _from_e2m1(stored: Tensor) -> Tensor:
    byte = stored.view(torch.uint8)
    codes = torch.stack([byte & 15, byte >> 4], -1).flatten(1)
    return E2M1_NUMBERS[(codes & 7).int()] * torch.where(codes > 7, -1.0, 1.0)
