"""The manifest of a packed file: a row for each tensor, checked as it is read."""

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator
from torch import Tensor

from octavo.activations.quantizer import scale_key
from octavo.errors import FormatError
from octavo.formats.rows import group_count
from octavo.formats.width import BITS, Width
from octavo.network.digest import bytes_of
from octavo.storage.limits import DIMENSIONS, ROWS, VALUES

__all__ = [
    "DTYPES",
    "GRIDS",
    "ActivationRow",
    "FloatRow",
    "LayerRow",
    "Manifest",
    "checksum",
    "raw_bytes",
    "read_manifest",
]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}

STRICT = ConfigDict(strict=True, extra="forbid")  # what nothing reads, nothing checks
Size = Annotated[int, Field(ge=0, lt=1 << 40)]

Grid: TypeAlias = Literal["powers", "apot", "fp", "int"]
GRIDS: Mapping[str, Grid] = {  # the file's own words
    "power_of_two": "powers",
    "apot": "apot",
    "fp": "fp",
    "int": "int",
}
CODEBOOKS = {grid: codebook for codebook, grid in GRIDS.items()}


class _Row(BaseModel):
    """The fields that the rows of layers and of other tensors have in common."""

    model_config = STRICT

    names: Annotated[list[str], FailFast(), Field(min_length=1, max_length=ROWS)]
    shape: Annotated[list[Size], FailFast(), Field(max_length=DIMENSIONS)]
    crc32: int

    @property
    def label(self) -> str:
        """The name of the tensor, for errors."""
        return self.names[0]

    def check(self, *tensors: Tensor) -> None:
        """Raise FormatError unless the checksum is that of these tensors."""
        if checksum(*tensors) != self.crc32:
            raise FormatError(
                f"{self.label}: its checksum does not match: the file is damaged or was altered"
            )


class LayerRow(_Row):
    """A quantized tensor; its shape has the output channels first."""

    name: str
    shape: Annotated[
        list[Annotated[Size, Field(ge=1)]],
        FailFast(),
        Field(min_length=1, max_length=DIMENSIONS),
    ]
    bits: Annotated[int, Field(ge=2, le=8)]
    groups: Annotated[int, Field(ge=0)]
    exponents: Annotated[int, Field(ge=0)]
    grid: Grid = "powers"
    group_size: Annotated[int, Field(ge=0)] = 0

    @property
    def code_count(self) -> int:
        """The number of codes."""
        return math.prod(self.shape)

    @property
    def exponent_shape(self) -> tuple[int, ...]:
        """The shape of the exponents: (), (channels,), or (channels, groups)."""
        if not self.group_size:
            return (self.exponents,) if self.exponents else ()
        return self.shape[0], group_count(math.prod(self.shape[1:]), self.group_size)

    @property
    def exponent_count(self) -> int:
        """The number of exponents; one where they are a scalar."""
        return math.prod(self.exponent_shape)

    @property
    def channel_exponents(self) -> int:
        """The numbers that the row takes from ``exponents``: one if the layer has one exponent,
        else one for each channel.
        """
        return math.prod(self.exponent_shape[:1])

    @property
    def version(self) -> int:
        """The oldest version of the format that has room for the row."""
        if self.group_size or self.grid not in ("powers", "apot"):
            return 4
        return 1 if self.grid == "powers" else 2

    @property
    def width(self) -> Width:
        """The bits together with the codebook, which the file calls the grid."""
        return Width(self.bits, CODEBOOKS[self.grid])

    @property
    def label(self) -> str:
        """The name of the layer, for errors."""
        return self.name

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        possible = BITS[CODEBOOKS[self.grid]]
        if self.bits not in possible:
            raise ValueError(
                f"{self.name}: expected {_listed(possible)} bits on the grid {self.grid}, "
                f"got {self.bits}"
            )
        expected = {self.exponent_count} if self.group_size else {0, self.shape[0]}
        if self.exponents not in expected:
            raise ValueError(
                f"{self.name}: expected {' or '.join(map(str, sorted(expected)))} exponents, "
                f"got {self.exponents}"
            )
        if self.groups and (len(self.shape) < 2 or self.shape[0] % self.groups):
            raise ValueError(
                f"{self.name}: {self.groups} groups do not divide the shape {self.shape}"
            )
        return self


def _listed(bits: Sequence[int]) -> str:
    """Write bits that a codebook can have: "5 to 8", or "4, 6, 8"."""
    if len(bits) == bits[-1] - bits[0] + 1 > 1:
        return f"{bits[0]} to {bits[-1]}"
    return ", ".join(map(str, bits))


class FloatRow(_Row):
    """A tensor that is stored as it is."""

    dtype: Annotated[str, Field(pattern="^(" + "|".join(DTYPES) + ")$")]

    @property
    def byte_count(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class ActivationRow(BaseModel):
    """The format of the quantized inputs of a module; their scale is a tensor of ``floats``."""

    model_config = STRICT

    name: str
    bits: Annotated[int, Field(ge=2, le=8)]
    signed: bool
    power_of_two: bool


class Manifest(BaseModel):
    """The manifest: all tensors of a file, in the order in which their bytes follow each other,
    and the modules whose inputs are quantized.
    """

    model_config = STRICT

    layers: Annotated[list[LayerRow], FailFast(), Field(max_length=ROWS)]
    floats: Annotated[list[FloatRow], FailFast(), Field(max_length=ROWS)]
    activations: Annotated[list[ActivationRow], FailFast(), Field(max_length=ROWS)] = []

    @property
    def decoded_bytes(self) -> int:
        """The bytes of all codes, one each, of all exponents, and of all other tensors."""
        exponents = sum(row.exponent_count for row in self.layers) * torch.int16.itemsize
        codes = sum(row.code_count for row in self.layers)
        return codes + exponents + sum(row.byte_count for row in self.floats)

    @property
    def version(self) -> int:
        """The oldest version of the format that has room for the manifest."""
        of_layers = max((row.version for row in self.layers), default=1)
        return max(of_layers, 2 if self.activations else 1)

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        scalars = {
            name
            for row in self.floats
            for name in row.names
            if not row.shape and "float" in row.dtype
        }
        for name, count in Counter(row.name for row in self.activations).items():
            if count > 1 or scale_key(name) not in scalars:
                raise ValueError(
                    f"{name}: expected one row, and {scale_key(name)} among the floats, a scalar"
                )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for names in (
            [row.name for row in self.layers],
            [name for row in (*self.layers, *self.floats) for name in row.names],
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{twice[0]}: two tensors have this name")
        return self


def read_manifest(text: bytes) -> Manifest:
    """Return the manifest from its JSON.

    Raises:
        FormatError: not as the format says; the message names the tensor, where there is one, and
            the entry.

    """
    extent = text.count(b",") + text.count(b"[") + text.count(b"{")  # one for each value, or more
    if extent > VALUES:
        raise FormatError(f"manifest: expected at most {VALUES:,} values, found more")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first["msg"].removeprefix("Value error, ").splitlines()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            f"manifest: {_tensor_name(text, first['loc'])}{where}{': ' if where else ''}{cause}"
        ) from error


def _tensor_name(text: bytes, path: tuple[int | str, ...]) -> str:
    """Return the name of the tensor whose row is at this path in the manifest, or nothing where
    the name is not readable.
    """
    if len(path) < 2:
        return ""
    try:
        row: Any = json.loads(text)[path[0]][path[1]]
        return f"{row.get('name') or row['names'][0]}, "
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return ""


def checksum(*tensors: Tensor) -> int:
    """Return the CRC-32 of the tensors' bytes, one after the other."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(bytes_of(tensor).data, crc)
    return crc


def raw_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as little-endian bytes."""
    return bytes_of(tensor).tobytes()
