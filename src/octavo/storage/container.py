"""The file of a packed network: a safetensors container of a few byte strings.

docs/format.md is its specification. The byte strings are:

- ``manifest`` (JSON in zstandard) names the tensors, in order, with a CRC-32 for each; the header
  of the file has the manifest's own CRC-32;
- ``codes.B`` has the codes of all layers of the width B, by ``octavo.storage.coding.grouped``;
- ``exponents`` (int16 in zstandard) has the exponents of all layers;
- ``floats`` has the raw bytes of all other tensors; where it pays, ``floats.zstd`` has the same
  bytes in zstandard instead.

To read a file unpickles nothing.
"""

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from octavo.activations.quantizer import InputFormat, scale_key
from octavo.errors import FormatError, brief
from octavo.formats.codebook import LARGEST
from octavo.formats.registry import codebook_at
from octavo.formats.width import Width
from octavo.storage.coding import grouped as coding
from octavo.storage.manifest import (
    DTYPES,
    GRIDS,
    ActivationRow,
    FloatRow,
    LayerRow,
    Manifest,
    checksum,
    raw_bytes,
    read_manifest,
)
from octavo.storage.quantized import Quantized

__all__ = ["VERSION", "Floats", "pack", "to_file", "unpack"]

VERSION = 3  # the newest; a file that needs nothing of it is written as version 1
# Compressed floats are stored if they take less than this share of the raw ones. Floats that shrink
# less, as float32 does, are not worth a version that fewer readers know.
PAYS = 0.9
# A manifest may expand to SMALL_MANIFEST bytes, and RATIO times its size more. The most seen was
# 130 times.
SMALL_MANIFEST = 1 << 16
RATIO = 1 << 10

# The names that share a tensor, and the tensor.
Floats: TypeAlias = Sequence[tuple[tuple[str, ...], Tensor]]
Activations: TypeAlias = Mapping[str, InputFormat]
Json: TypeAlias = dict[str, Any]


def pack(
    layers: Mapping[str, Quantized], floats: Floats, activations: Activations | None = None
) -> tuple[dict[str, bytes], int]:
    """Return the file's byte strings by name, and the oldest format version that has room for all
    of this.
    """
    manifest = Manifest(
        layers=[_layer_row(name, layer) for name, layer in layers.items()],
        floats=[_float_row(names, value) for names, value in floats],
        activations=[
            ActivationRow(name=name, **asdict(form)) for name, form in (activations or {}).items()
        ],
    )
    exponents = [
        raw_bytes(layer.codebook.max_exponent.to(torch.int16)) for layer in layers.values()
    ]
    blobs = {
        "manifest": _squeeze(manifest.model_dump_json(exclude_defaults=True).encode()),
        **_code_strings(layers.values()),
        "exponents": _squeeze(b"".join(exponents)),
    }
    raw = b"".join(raw_bytes(value) for _, value in floats)
    squeezed = _squeeze(raw, level=3)
    if len(squeezed) < PAYS * len(raw):
        return {**blobs, "floats.zstd": squeezed}, 3
    needs_version_2 = activations or any(row.grid != "powers" for row in manifest.layers)
    return {**blobs, "floats": raw}, 2 if needs_version_2 else 1


def to_file(blobs: Mapping[str, bytes], version: int) -> bytes:
    """Return the byte strings as a safetensors file, with the format's version in its header."""
    entry = {"version": version, "manifest_crc32": zlib.crc32(blobs["manifest"])}
    head = json.dumps(entry, allow_nan=False)
    tensors = {
        name: torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        for name, blob in blobs.items()
        if blob
    }
    return safetensors.torch.save(tensors, {"octavo": head})


def unpack(data: bytes) -> tuple[dict[str, Quantized], Floats, Activations]:
    """Return the layers of a file, its other tensors, and how the inputs of its modules are
    quantized.

    Raises:
        FormatError: not octavo's, from a newer version, or damaged; the message names the tensor
            and the cause.

    """
    blobs, head = _open(data)
    squeezed = blobs.get("manifest", b"")
    if zlib.crc32(squeezed) != head.get("manifest_crc32"):
        raise FormatError(
            "manifest: its checksum does not match: the file is damaged or was altered"
        )
    manifest = read_manifest(_expand(squeezed, SMALL_MANIFEST + RATIO * len(squeezed), "manifest"))
    if head["version"] == 1:
        _check_powers(manifest)
    try:
        floats = _read_floats(manifest.floats, blobs, compressed=head["version"] >= 3)
        layers = _read_layers(manifest.layers, blobs)
        return layers, floats, _read_activations(manifest.activations, floats)
    except FormatError:
        raise
    except (OverflowError, MemoryError, RuntimeError, ValueError) as error:
        raise FormatError(f"manifest: its tensors do not fit: {brief(error)}") from error


def _open(data: bytes) -> tuple[dict[str, bytes], Json]:
    """Return the byte strings of a safetensors file, and octavo's entry of its header with a
    version that can be read.
    """
    head = _read_head(data)
    version = head["version"]
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"expected a format version of 1 to {VERSION}, found {version!r}")
    if version > VERSION:
        raise FormatError(
            f"format version {version} is newer than {VERSION}, the newest this octavo reads: "
            "upgrade octavo"
        )
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"the container is truncated or damaged: {error}") from error
    blobs = {
        name: tensor.numpy().tobytes()
        for name, tensor in tensors.items()
        if tensor.dtype == torch.uint8
    }
    return blobs, head


def _read_head(data: bytes) -> Json:
    """Return octavo's entry of a safetensors header; it has a version."""
    try:
        size = int.from_bytes(data[:8], "little")
        head: Json = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["octavo"])
        head["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(_other_kind(data)) from error
    return head


def _other_kind(data: bytes) -> str:
    """Return in words what a file is that is not a packed network."""
    exported = (
        "`octavo export` checked it when it was written, and it has no checksums to verify; "
        "give the packed file that it was made from"
    )
    if b'{"__metadata__":{"octavo.mx":' in data[:64]:
        return f"expected a packed network, got an export in the form mx: {exported}"
    if data[:1] == b"\x08" and data[2:3] == b"\x12":  # protobuf: ir_version, producer_name
        return (
            f"expected a packed network, got an ONNX file: {exported}, "
            "or score it by `octavo evaluate FILE --task TASK`"
        )
    return (
        "expected a safetensors file with octavo's header, found none: "
        "not octavo's, or cut or damaged"
    )


def _check_powers(manifest: Manifest) -> None:
    """Raise FormatError where a file of version 1 has another codebook than powers of two: readers
    of that version would take its codes for powers of two.
    """
    for row in manifest.layers:
        if row.grid != "powers":
            raise FormatError(
                f"{row.name}: expected the grid powers in a file of version 1, got {row.grid}"
            )


def _code_strings(layers: Iterable[Quantized]) -> dict[str, bytes]:
    """Return the codes of all layers, one byte string for each width."""
    by_width: dict[Width, list[Tensor]] = {}
    for layer in layers:
        by_width.setdefault(layer.codebook.width, []).append(layer.codes.reshape(-1))
    return {
        f"codes.{width}": coding.encode_codes(torch.cat(by_width[width]), width)
        for width in sorted(by_width)
    }


def _layer_row(name: str, layer: Quantized) -> LayerRow:
    exponents = layer.codebook.max_exponent
    width = layer.codebook.width
    return LayerRow(
        name=name,
        names=list(layer.names),
        shape=list(layer.codes.shape),
        bits=width.bits,
        grid=GRIDS[width.codebook],
        groups=layer.groups,
        exponents=exponents.numel() if exponents.dim() else 0,
        crc32=checksum(layer.codes, exponents.to(torch.int16)),
    )


def _float_row(names: tuple[str, ...], value: Tensor) -> FloatRow:
    dtype = str(value.dtype).removeprefix("torch.")
    return FloatRow(names=list(names), shape=list(value.shape), dtype=dtype, crc32=checksum(value))


def _read_layers(rows: Sequence[LayerRow], blobs: Mapping[str, bytes]) -> dict[str, Quantized]:
    """Return the layers by name. The streams hand out each layer's codes and exponents in the order
    of the rows, and must then be used up.
    """
    widths = {row.width for row in rows}
    codes = {width: _code_stream(width, rows, blobs) for width in sorted(widths)}
    exponents = _exponent_stream(rows, blobs)
    layers = {
        row.name: _read_layer(row, codes[row.width].take(row.code_count), exponents) for row in rows
    }
    for stream in (*codes.values(), exponents):
        stream.check_used_up()
    return layers


def _read_layer(row: LayerRow, codes: Tensor, exponents: "_Stream") -> Quantized:
    exponent = exponents.take(row.exponent_count)
    row.check(codes, exponent)
    codebook = codebook_at(row.width, (exponent if row.exponents else exponent[0]).int())
    lowest = codebook.lowest_max_exponent
    if not bool(((exponent >= lowest) & (exponent <= LARGEST)).all()):
        raise FormatError(
            f"{row.name}: expected exponents from {lowest} to {LARGEST}, "
            f"got {exponent.min()} to {exponent.max()}"
        )
    return Quantized(tuple(row.names), codebook, codes.view(row.shape), row.groups)


def _code_stream(width: Width, rows: Sequence[LayerRow], blobs: Mapping[str, bytes]) -> "_Stream":
    """Return the codes of all layers of one width."""
    name = f"codes.{width}"
    data = _blob(blobs, name)
    count = sum(row.code_count for row in rows if row.width == width)
    try:
        codes = coding.decode_codes(data, count, width)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
    return _Stream(name, codes)


def _exponent_stream(rows: Sequence[LayerRow], blobs: Mapping[str, bytes]) -> "_Stream":
    """Return the exponents of all layers, int16."""
    size = sum(row.exponent_count for row in rows) * torch.int16.itemsize
    data = _expand(_blob(blobs, "exponents"), size, "exponents")
    return _Stream("exponents", _tensor(data, torch.int16))


def _read_floats(
    rows: Sequence[FloatRow], blobs: Mapping[str, bytes], *, compressed: bool
) -> Floats:
    sizes = [math.prod(row.shape) * DTYPES[row.dtype].itemsize for row in rows]
    name = "floats.zstd" if compressed else "floats"
    data = _expand(_blob(blobs, name), sum(sizes), name) if compressed else blobs.get(name, b"")
    stream = _Stream(name, _tensor(data, torch.uint8))
    floats = []
    for row, size in zip(rows, sizes, strict=True):
        raw = stream.take(size).numpy().tobytes()
        value = _tensor(raw, DTYPES[row.dtype]).view(row.shape)
        row.check(value)
        floats.append((tuple(row.names), value))
    stream.check_used_up()
    return floats


def _read_activations(rows: Sequence[ActivationRow], floats: Floats) -> Activations:
    """Return how the inputs of modules are quantized, after a check of their scales."""
    scalars = {name: float(value) for names, value in floats if not value.dim() for name in names}
    for row in rows:
        scale = scalars[scale_key(row.name)]
        if not 0 < scale < math.inf:
            raise FormatError(
                f"{row.name}: expected a positive scale for its inputs, got {scale:g}"
            )
    return {row.name: InputFormat(row.bits, row.signed, row.power_of_two) for row in rows}


@dataclass
class _Stream:
    """A vector that hands out its values piece by piece."""

    name: str
    values: Tensor
    position: int = 0

    def take(self, count: int) -> Tensor:
        """Return the next values."""
        piece = self.values[self.position : self.position + count]
        if len(piece) != count:
            raise FormatError(
                f"{self.name}: truncated: expected {count} more values, got {len(piece)}"
            )
        self.position += count
        return piece

    def check_used_up(self) -> None:
        """Raise FormatError if some values were not taken."""
        if self.position != len(self.values):
            raise FormatError(
                f"{self.name}: {len(self.values) - self.position} values belong to no tensor "
                "of the manifest"
            )


def _blob(blobs: Mapping[str, bytes], name: str) -> bytes:
    if name not in blobs:
        raise FormatError(f"{name}: missing in the file")
    return blobs[name]


def _tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _squeeze(data: bytes, level: int = 19) -> bytes:
    return zstandard.ZstdCompressor(level, write_checksum=False).compress(data)


def _expand(data: bytes, most: int, name: str) -> bytes:
    """Undo ``_squeeze``. More than ``most`` bytes are an error, found before they are allocated."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:
            raise FormatError(f"{name}: expected at most {most} bytes, its header says {size}")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise FormatError(f"{name}: damaged: {error}") from error
