"""The file of a packed network: a safetensors container of a few byte strings.

docs/format.md is its specification. The byte strings are:

- ``manifest`` (JSON in zstandard) names the tensors, in order, with a CRC-32 for each; the header
  of the file has the manifest's own CRC-32;
- ``codes.B`` has the codes of all layers of the width B, by ``octavo.storage.coding.grouped``;
  ``codes.small`` has those of all layers instead, by ``octavo.storage.coding.small``;
- ``exponents`` (int16 in zstandard) has the exponents of all layers; where a layer has groups, the
  largest of each channel, while ``exponents.groups`` has how far each group lies below;
- ``floats`` has the raw bytes of all other tensors; where it pays, ``floats.zstd`` has the same
  bytes in zstandard instead.

To read a file unpickles nothing.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from octavo.activations.quantizer import InputFormat, scale_key
from octavo.errors import FormatError, brief
from octavo.formats.codebook import LARGEST
from octavo.formats.registry import codebook_at
from octavo.storage.file_kind import kind_of
from octavo.storage.layer_strings import (
    SMALL,
    Coding,
    layer_names,
    layer_strings,
    read_layer_strings,
)
from octavo.storage.limits import (
    HEADER_BYTES,
    check_decoded,
    default_limit,
    most_manifest_bytes,
)
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
from octavo.storage.streams import Stream, as_tensor, expand, squeeze, string

__all__ = ["VERSION", "Floats", "coding_of", "pack", "to_file", "unpack"]

VERSION = 4  # the newest; a file that needs nothing of it is written as version 1
# Compressed floats are stored if they take less than this share of the raw ones. Floats that shrink
# less, as float32 does, are not worth a version that fewer readers know.
PAYS = 0.9
# The names of byte strings.
FLOATS = "floats"
FLOATS_ZSTD = "floats.zstd"
HEAD = {"version", "manifest_crc32"}  # the keys of octavo's entry in the header

# The names that share a tensor, and the tensor.
Floats: TypeAlias = Sequence[tuple[tuple[str, ...], Tensor]]
Activations: TypeAlias = Mapping[str, InputFormat]
Json: TypeAlias = dict[str, Any]


def pack(
    layers: Mapping[str, Quantized],
    floats: Floats,
    activations: Activations | None = None,
    coding: Coding = "fast",
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
    blobs = {
        "manifest": squeeze(manifest.model_dump_json(exclude_defaults=True).encode()),
        **layer_strings(layers, coding),
    }
    version = max(manifest.version, 4 if SMALL in blobs else 1)
    raw = b"".join(raw_bytes(value) for _, value in floats)
    squeezed = squeeze(raw, level=3)
    if len(squeezed) < PAYS * len(raw):
        return {**blobs, FLOATS_ZSTD: squeezed}, max(version, 3)
    return {**blobs, FLOATS: raw}, version


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


def unpack(
    data: bytes, limit: int | None = None
) -> tuple[dict[str, Quantized], Floats, Activations]:
    """Return the layers of a file, its other tensors, and how the inputs of its modules are
    quantized.

    Args:
        data: the content of the file.
        limit: the most bytes that it may decode to, a byte for each code; they are counted before
            any is decoded. None takes ``octavo.storage.limits.default_limit``.

    Raises:
        FormatError: not octavo's, from a newer version, damaged, or beyond the limit; the message
            names the tensor and the cause.

    """
    blobs, head = _open(data)
    squeezed = blobs.get("manifest", b"")
    if zlib.crc32(squeezed) != head["manifest_crc32"]:
        raise FormatError(
            "manifest: its checksum does not match: the file is damaged or was altered"
        )
    manifest = read_manifest(expand(squeezed, most_manifest_bytes(len(squeezed)), "manifest"))
    check_decoded(manifest.decoded_bytes, default_limit(len(data)) if limit is None else limit)
    _check_version(manifest, head["version"])
    compressed = FLOATS_ZSTD in blobs if head["version"] >= 4 else head["version"] == 3
    try:
        floats = _read_floats(manifest.floats, blobs, compressed=compressed)
        layers = _read_layers(manifest.layers, blobs)
        _check_known(blobs, manifest, head["version"], FLOATS_ZSTD if compressed else FLOATS)
        return layers, floats, _read_activations(manifest.activations, floats)
    except FormatError:
        raise
    except (OverflowError, MemoryError, RuntimeError, ValueError) as error:
        raise FormatError(f"manifest: its tensors do not fit: {brief(error)}") from error


def coding_of(data: bytes) -> Coding:
    """Return the coding of a file that :func:`unpack` reads."""
    size = int.from_bytes(data[:8], "little")
    return "small" if SMALL in json.loads(data[8 : 8 + size]) else "fast"


def _open(data: bytes) -> tuple[dict[str, bytes], Json]:
    """Return the byte strings of a safetensors file, and octavo's entry of its header with a
    version that can be read.
    """
    head = _read_head(data)
    version = head["version"]
    if type(version) is not int or version < 1:  # True is an int too
        raise FormatError(f"expected a format version of 1 to {VERSION}, found {version!r:.80}")
    if version > VERSION:
        raise FormatError(
            f"format version {version!s:.80} is newer than {VERSION}, the newest this octavo "
            "reads: upgrade octavo"
        )
    if set(head) != HEAD:
        found = ", ".join(head)
        raise FormatError(f"the header: expected version and manifest_crc32, found {found}")
    try:
        tensors = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise FormatError(f"the container is truncated or damaged: {error}") from error
    for name, tensor in tensors:
        if tensor["dtype"] != "U8" or len(tensor["shape"]) != 1:
            got = f"{tensor['dtype']} of shape {tensor['shape']}"
            raise FormatError(f"{name}: expected a byte string, U8 of one dimension, found {got}")
    return {name: tensor["data"] for name, tensor in tensors}, head


def _read_head(data: bytes) -> Json:
    """Return octavo's entry of a safetensors header; it has a version."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size] if size <= HEADER_BYTES else b""
    try:
        entries: Json = json.loads(header)["__metadata__"]
        head: Json = json.loads(entries["octavo"])
        head["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(_other_kind(data)) from error
    if len(entries) > 1:
        found = ", ".join(entries)
        raise FormatError(f"the header: expected octavo's entry alone, found {found}")
    return head


def _other_kind(data: bytes) -> str:
    """Return in words what a file is that is not a packed network."""
    exported = (
        "`octavo export` checked it when it was written, and it has no checksums to verify; "
        "give the packed file that it was made from"
    )
    if b'{"__metadata__":{"octavo.mx":' in data[:64]:
        return f"expected a packed network, got an export in the form mx: {exported}"
    if kind_of(data) == "onnx":
        return (
            f"expected a packed network, got an ONNX file: {exported}, "
            "or score it by `octavo evaluate FILE --task TASK`"
        )
    return (
        "expected a safetensors file with octavo's header, found none: "
        "not octavo's, or cut or damaged"
    )


def _check_known(blobs: Mapping[str, bytes], manifest: Manifest, version: int, floats: str) -> None:
    """Raise FormatError where a byte string is none of those that are read."""
    known = {"manifest", floats, *layer_names(manifest.layers, small=SMALL in blobs)}
    if version < 4:
        known.discard(SMALL)
    for name in blobs:
        if name not in known:
            raise FormatError(
                f"{name}: expected no byte string of this name in a file of version {version} "
                "with these layers"
            )


def _check_version(manifest: Manifest, version: int) -> None:
    """Raise FormatError where a layer needs a newer version than the file says it has: readers of
    that version would take its codes for those of another codebook.
    """
    for row in manifest.layers:
        if row.version <= version:
            continue
        if row.group_size:
            raise FormatError(f"{row.name}: expected no groups in a file of version {version}")
        known = "powers" if version == 1 else "powers or apot"
        raise FormatError(
            f"{row.name}: expected the grid {known} in a file of version {version}, got {row.grid}"
        )


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
        group_size=layer.codebook.group_size,
        crc32=checksum(layer.codes, exponents.to(torch.int16)),
    )


def _float_row(names: tuple[str, ...], value: Tensor) -> FloatRow:
    dtype = str(value.dtype).removeprefix("torch.")
    return FloatRow(names=list(names), shape=list(value.shape), dtype=dtype, crc32=checksum(value))


def _read_layers(rows: Sequence[LayerRow], blobs: Mapping[str, bytes]) -> dict[str, Quantized]:
    """Return the layers by name."""
    parts = zip(rows, read_layer_strings(rows, blobs), strict=True)
    return {row.name: _read_layer(row, codes, exponent) for row, (codes, exponent) in parts}


def _read_layer(row: LayerRow, codes: Tensor, exponent: Tensor) -> Quantized:
    row.check(codes, exponent)
    codebook = codebook_at(row.width, exponent.int(), row.group_size)
    lowest = codebook.lowest_max_exponent
    least, most = int(exponent.min()), int(exponent.max())
    if least < lowest or most > LARGEST:
        raise FormatError(
            f"{row.name}: expected exponents from {lowest} to {LARGEST}, got {least} to {most}"
        )
    return Quantized(tuple(row.names), codebook, codes.view(row.shape), row.groups)


def _read_floats(
    rows: Sequence[FloatRow], blobs: Mapping[str, bytes], *, compressed: bool
) -> Floats:
    size = sum(row.byte_count for row in rows)
    name = FLOATS_ZSTD if compressed else FLOATS
    data = expand(string(blobs, name), size, name) if compressed else blobs.get(name, b"")
    stream = Stream(name, as_tensor(data, torch.uint8))
    floats = []
    for row in rows:
        raw = stream.take(row.byte_count).clone()  # at an address that suits any type
        row.check(raw)
        if row.dtype == "bool" and bool((raw > 1).any()):
            raise FormatError(f"{row.label}: expected bools of 0 and 1, found other bytes")
        value = raw.view(DTYPES[row.dtype]).view(row.shape)
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
