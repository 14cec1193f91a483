"""The file of a packed network: a safetensors container of a few byte strings (docs/format.md is
its specification).

``manifest`` (zstandard, JSON) names the tensors, in order; ``codes.B`` holds the codes of all
    layers of the width B, coded by
``octavo.storage.coding.grouped``; ``exponents`` (zstandard, int16) every n1; ``floats`` the raw
bytes of all other tensors, or ``floats.zstd`` the same compressed, where that pays. Each tensor has
its CRC-32 in the manifest, and the manifest has one in the header. Reading unpickles nothing.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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

__all__ = ["VERSION", "pack", "to_file", "unpack"]

VERSION = 3  # the newest; a file that needs nothing of it is written as version 1
# of the size of raw floats: more, as of float32, is not worth a version that fewer readers know
PAYS = 0.9
SMALL_MANIFEST, RATIO = (
    1 << 16,
    1 << 10,
)  # a manifest may expand to so many bytes and so many times its size; seen: 130

Floats = list[tuple[tuple[str, ...], Tensor]]
Activations = Mapping[str, InputFormat]
Json = dict[str, Any]


def pack(
    layers: Mapping[str, Quantized], floats: Floats, activations: Activations | None = None
) -> tuple[dict[str, bytes], int]:
    """The file's byte strings by name, and the oldest version of the format that can say all
    this.
    """
    manifest = Manifest(
        layers=[_layer_row(name, layer) for name, layer in layers.items()],
        floats=[_float_row(names, value) for names, value in floats],
        activations=[
            ActivationRow(name=name, **asdict(form)) for name, form in (activations or {}).items()
        ],
    )
    blobs = {"manifest": _squeeze(manifest.model_dump_json(exclude_defaults=True).encode())}
    for width in sorted({layer.codebook.width for layer in layers.values()}):
        same = [layer.codes.reshape(-1) for layer in layers.values() if layer.codebook.width == width]
        blobs[f"codes.{width}"] = coding.compress(torch.cat(same), width)
    blobs["exponents"] = _squeeze(
        b"".join(
            raw_bytes(layer.codebook.max_exponent.to(torch.int16)) for layer in layers.values()
        )
    )
    raw = b"".join(raw_bytes(value) for _, value in floats)
    squeezed = _squeeze(raw, level=3)
    if len(squeezed) < PAYS * len(raw):
        return blobs | {"floats.zstd": squeezed}, 3
    newer = activations or any(row.grid != "powers" for row in manifest.layers)
    return blobs | {"floats": raw}, 2 if newer else 1


def to_file(blobs: Mapping[str, bytes], version: int) -> bytes:
    """The byte strings as a safetensors file, with the format's version in its header."""
    head = json.dumps({"version": version, "manifest_crc32": zlib.crc32(blobs["manifest"])})
    tensors = {
        name: torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        for name, blob in blobs.items()
        if blob
    }
    return safetensors.torch.save(tensors, {"octavo": head})


def unpack(data: bytes) -> tuple[dict[str, Quantized], Floats, Activations]:
    """The layers and the other tensors of a file, and how the inputs of its modules are quantized.

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
        return (
            _read_layers(manifest.layers, blobs),
            floats,
            _read_activations(manifest.activations, floats),
        )
    except FormatError:
        raise
    except (OverflowError, MemoryError, RuntimeError, ValueError) as error:
        raise FormatError(f"manifest: its tensors do not fit: {brief(error)}") from error


def _open(data: bytes) -> tuple[dict[str, bytes], Json]:
    """The byte strings of a safetensors file and octavo's entry of its header, its version
    checked.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + size])["__metadata__"]["octavo"]
        head = json.loads(entry)
        version = head["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(
            "expected a safetensors file with octavo's header, found none: not octavo's, or cut or damaged"
        ) from error
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"expected a format version of 1 to {VERSION}, found {version!r}")
    if version > VERSION:
        raise FormatError(
            f"format version {version} is newer than {VERSION}, the newest this octavo reads: upgrade octavo"
        )
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"the container is truncated or damaged: {error}") from error
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in tensors.items()
        if tensor.dtype == torch.uint8
    }, head


def _check_powers(manifest: Manifest) -> None:
    """Readers of version 1 know no other grid, and would take its codes for powers of two."""
    for row in manifest.layers:
        if row.grid != "powers":
            raise FormatError(
                f"{row.name}: expected the grid powers in a file of version 1, got {row.grid}"
            )


def _layer_row(name: str, layer: Quantized) -> LayerRow:
    top = layer.codebook.max_exponent
    width = layer.codebook.width
    return LayerRow(
        name=name,
        names=list(layer.names),
        shape=list(layer.codes.shape),
        bits=width.bits,
        grid=GRIDS[width.codebook],
        groups=layer.groups,
        exponents=top.numel() if top.dim() else 0,
        crc32=checksum(layer.codes, top.to(torch.int16)),
    )


def _float_row(names: tuple[str, ...], value: Tensor) -> FloatRow:
    dtype = str(value.dtype).removeprefix("torch.")
    return FloatRow(names=list(names), shape=list(value.shape), dtype=dtype, crc32=checksum(value))


def _read_layers(rows: Sequence[LayerRow], blobs: Mapping[str, bytes]) -> dict[str, Quantized]:
    streams = {}
    for bits in {row.width for row in rows}:
        count = sum(math.prod(row.shape) for row in rows if row.width == bits)
        name = f"codes.{bits}"
        streams[bits] = _Stream(name, _decompress(_blob(blobs, name), count, bits, name))
    size = 2 * sum(max(1, row.exponents) for row in rows)
    tops = _Stream(
        "exponents", _tensor(_expand(_blob(blobs, "exponents"), size, "exponents"), torch.int16)
    )
    layers = {}
    for row in rows:
        codes = streams[row.width].take(math.prod(row.shape)).view(row.shape)
        top = tops.take(max(1, row.exponents))
        row.check(codes, top)
        codebook = codebook_at(row.width, (top if row.exponents else top[0]).int())
        if not bool(((top >= (low := codebook.lowest_max_exponent)) & (top <= LARGEST)).all()):
            raise FormatError(
                f"{row.name}: expected exponents from {low} to {LARGEST}, got {top.min()} to {top.max()}"
            )
        layers[row.name] = Quantized(tuple(row.names), codebook, codes, row.groups)
    for stream in (*streams.values(), tops):
        stream.close()
    return layers


def _decompress(data: bytes, count: int, bits: Width, name: str) -> Tensor:
    try:
        return coding.decompress(data, count, bits)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error


def _read_floats(
    rows: Sequence[FloatRow], blobs: Mapping[str, bytes], *, compressed: bool
) -> Floats:
    sizes = [math.prod(row.shape) * DTYPES[row.dtype].itemsize for row in rows]
    name = "floats.zstd" if compressed else "floats"
    data = _expand(_blob(blobs, name), sum(sizes), name) if compressed else blobs.get(name, b"")
    stream, floats = _Stream(name, _tensor(data, torch.uint8)), []
    for row, size in zip(rows, sizes, strict=True):
        dtype = DTYPES[row.dtype]
        raw = stream.take(size)
        value = _tensor(raw.numpy().tobytes(), dtype).view(row.shape)
        row.check(value)
        floats.append((tuple(row.names), value))
    stream.close()
    return floats


def _read_activations(rows: Sequence[ActivationRow], floats: Floats) -> Activations:
    values = {name: float(value) for names, value in floats if not value.dim() for name in names}
    for row in rows:
        if not 0 < (step := values[scale_key(row.name)]) < math.inf:
            raise FormatError(f"{row.name}: expected a positive step for its inputs, got {step:g}")
    return {row.name: InputFormat(row.bits, row.signed, row.power_of_two) for row in rows}


@dataclass
class _Stream:
    """A vector that is handed out piece by piece."""

    name: str
    values: Tensor
    position: int = 0

    def take(self, count: int) -> Tensor:
        piece = self.values[self.position : self.position + count]
        if len(piece) != count:
            raise FormatError(
                f"{self.name}: truncated: expected {count} more values, got {len(piece)}"
            )
        self.position += count
        return piece

    def close(self) -> None:
        if self.position != len(self.values):
            raise FormatError(
                f"{self.name}: {len(self.values) - self.position} values belong to no tensor of the manifest"
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
    """Undo ``_squeeze``, refusing more than ``most`` bytes."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:
            raise FormatError(f"{name}: expected at most {most} bytes, its header says {size}")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise FormatError(f"{name}: damaged: {error}") from error
