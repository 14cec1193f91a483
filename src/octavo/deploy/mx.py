"""The form ``mx``: MXFP4, MXFP6, MXFP8 and MXINT8 tensors (OCP Microscaling Formats 1.0) in a
safetensors file, for the kernels of other libraries.

The weight of a layer ``L`` is a matrix with a row for each output channel. The file stores its
elements as ``L.weight``, in torch's own types where it has them:

- E2M1 (2 to 4 bits, and ``fp4``): two in a byte, the first in the low bits;
- E2M3 (``fp6``): four in three bytes, the first in the lowest bits;
- E4M3 (other codebooks of 5 to 8 bits);
- int8 (``int8``), in units of 1/64.

It stores an E8M0 scale for every 32 elements of a row as ``L.weight_scale``. Every other tensor has
its own name. The header's ``octavo.mx`` has the shapes of the weights.
"""

import json
import tempfile
from math import prod
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from octavo.deploy.e2m1 import BLOCK, pairs, unpaired
from octavo.deploy.elements import E2M1, E2M3, E2M3_NUMBERS, E4M3, INT8, Format, elements
from octavo.deploy.forms import FormFile, Job
from octavo.errors import ExportError
from octavo.formats.width import Width
from octavo.network.layers import channels_back
from octavo.storage.quantized import Quantized

__all__ = ["BLOCK", "make", "read_mx"]

HEADER = "octavo.mx"
INT8_UNIT = 2.0**-6  # of the elements of MXINT8


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
        scales = tensors.pop(f"{parameter}_scale").float()
        columns = prod(row["shape"][1:])
        numbers = _numbers(tensors.pop(parameter))
        matrix = numbers[:, :columns] * scales.repeat_interleave(BLOCK, 1)[:, :columns]
        tensors |= dict.fromkeys(
            row["names"], channels_back(matrix.view(row["shape"]), row["groups"])
        )
    return tensors


def _numbers(stored: Tensor) -> Tensor:
    """Return the elements of a stored matrix, and maybe zeros at the end of its rows."""
    if stored.dtype == torch.float4_e2m1fn_x2:
        return unpaired(stored.view(torch.uint8))
    if stored.dtype == torch.uint8:
        return _decoded(_unpacked(stored))
    unit = INT8_UNIT if stored.dtype == torch.int8 else 1
    return stored.float() * unit


def _format(layer: Quantized) -> Format:
    """Return the format of a layer's elements: its own where its codebook has one."""
    width = layer.codebook.width
    native = {Width(6, "fp"): E2M3, Width(8, "int"): INT8}
    return native.get(width, E2M1 if width.bits <= 4 else E4M3)


def _blocks(name: str, layer: Quantized) -> tuple[Tensor, Tensor]:
    """Return the elements and the scales of a layer as they are stored."""
    form = _format(layer)
    element, scale = elements(layer.codebook, layer.codes, form, name)
    matrix = element.reshape(len(element), -1)
    blocks = -(-matrix.shape[1] // BLOCK)
    scales = _block_scales(name, layer, scale, blocks).expand(len(matrix), blocks)
    if form is INT8:
        scales = scales / INT8_UNIT
    return _stored(matrix, form), scales.to(torch.float8_e8m0fnu).contiguous()


def _block_scales(name: str, layer: Quantized, scale: Tensor, blocks: int) -> Tensor:
    """Return the scale of each block, or one for all blocks of a row."""
    size = layer.codebook.group_size
    if not size:
        return scale.reshape(-1, 1)
    if scale.shape[1] > 1 and size % BLOCK:
        raise ExportError(
            f"{name}: expected groups of a multiple of {BLOCK} inputs, which a block has one scale "
            f"for, got groups of {size}"
        )
    return scale.repeat_interleave(max(1, size // BLOCK), 1)[:, :blocks]


def _stored(matrix: Tensor, form: Format) -> Tensor:
    """Return elements in the type that they are stored in."""
    if form is E2M1:
        return pairs(matrix).view(torch.float4_e2m1fn_x2)
    if form is E2M3:
        return _packed(_encoded(matrix))
    return matrix.to(torch.int8 if form is INT8 else torch.float8_e4m3fn)


def _encoded(matrix: Tensor) -> Tensor:
    """Return the codes of E2M3 numbers: the sign is the highest of 6 bits."""
    magnitude = torch.searchsorted(E2M3_NUMBERS, matrix.abs())
    return (magnitude + (matrix < 0) * len(E2M3_NUMBERS)).to(torch.uint8)


def _decoded(codes: Tensor) -> Tensor:
    sign = torch.where(codes < len(E2M3_NUMBERS), 1.0, -1.0)
    return E2M3_NUMBERS[(codes % len(E2M3_NUMBERS)).int()] * sign


def _packed(codes: Tensor) -> Tensor:
    """Pack four codes of 6 bits into three bytes, lowest bits first; zeros fill up the last bytes
    of a row.
    """
    codes = nn.functional.pad(codes, (0, -codes.shape[1] % 4))
    first, second, third, fourth = codes.unflatten(1, (-1, 4)).unbind(2)
    three_bytes = [first | second << 6, second >> 2 | third << 4, third >> 4 | fourth << 2]
    return torch.stack(three_bytes, 2).flatten(1)


def _unpacked(packed: Tensor) -> Tensor:
    """Undo :func:`_packed`."""
    one, two, three = packed.unflatten(1, (-1, 3)).unbind(2)
    codes = [one & 63, (one >> 6 | two << 2) & 63, (two >> 4 | three << 4) & 63, three >> 2]
    return torch.stack(codes, 2).flatten(1)
