"""The file of a packed network: a safetensors container of a few byte strings (docs/format.md is its specification).

``manifest`` (zstandard, JSON) names the tensors, in order; ``codes.B`` holds the codes of all layers of B bits, coded by
``octavo.coding``; ``exponents`` (zstandard, int16) every n1; ``floats`` the raw bytes of all other tensors. Each tensor has its
CRC-32 in the manifest, and the manifest has one in the header. Reading unpickles nothing.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from octavo import coding
from octavo.codebook import PowerOfTwo
from octavo.errors import FormatError
from octavo.layers import Layer, channels_back

__all__ = ["DTYPES", "VERSION", "Quantized", "pack", "to_file", "unpack"]

VERSION = 1
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}
LARGEST_MANIFEST = 1 << 26  # bytes; a manifest takes about 100 bytes a tensor

Floats = list[tuple[tuple[str, ...], Tensor]]
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Quantized:
    """One quantized tensor.

    Attributes:
        names: the full names of the parameters that share it.
        codebook: its levels.
        codes: uint8, output channels first.
        groups: of a transposed convolution, whose own layout has the output channels second; else 0.

    """

    names: tuple[str, ...]
    codebook: PowerOfTwo
    codes: Tensor
    groups: int = 0

    @classmethod
    def of(cls, layer: Layer, codebook: PowerOfTwo, codes: Tensor) -> Self:
        """The quantized form of a model's layer, from its codes with output channels first."""
        names = (layer.parameter, *(full for full, *_ in layer.tied))
        return cls(names, PowerOfTwo(codebook.bits, codebook.top.cpu()), codes, layer.groups)

    def weight(self) -> Tensor:
        """The weights, float32, in the parameter's own layout."""
        return channels_back(self.codebook.decode(self.codes), self.groups)


def pack(layers: Mapping[str, Quantized], floats: Floats) -> dict[str, bytes]:
    """The file's byte strings by name."""
    manifest = {
        "layers": [_describe_layer(name, layer) for name, layer in layers.items()],
        "floats": [_describe_float(names, value) for names, value in floats],
    }
    blobs = {"manifest": _squeeze(json.dumps(manifest, separators=(",", ":")).encode())}
    for bits in sorted({layer.codebook.bits for layer in layers.values()}):
        same = [layer.codes.reshape(-1) for layer in layers.values() if layer.codebook.bits == bits]
        blobs[f"codes.{bits}"] = coding.compress(torch.cat(same), bits)
    blobs["exponents"] = _squeeze(b"".join(_raw(layer.codebook.top.to(torch.int16)) for layer in layers.values()))
    blobs["floats"] = b"".join(_raw(value) for _, value in floats)
    return blobs


def to_file(blobs: Mapping[str, bytes]) -> bytes:
    """The byte strings as a safetensors file, with the format's version in its header."""
    head = json.dumps({"version": VERSION, "manifest_crc32": zlib.crc32(blobs["manifest"])})
    tensors = {name: torch.frombuffer(bytearray(blob), dtype=torch.uint8) for name, blob in blobs.items() if blob}
    return safetensors.torch.save(tensors, {"octavo": head})


def unpack(data: bytes) -> tuple[dict[str, Quantized], Floats]:
    """The layers and the other tensors of a file.

    Raises:
        FormatError: not octavo's, from a newer version, or damaged; the message names the tensor and the cause.

    """
    blobs, head = _open(data)
    squeezed = blobs.get("manifest", b"")
    if zlib.crc32(squeezed) != head.get("manifest_crc32"):
        raise FormatError("manifest: its checksum does not match: the file is damaged or was altered")
    try:
        manifest = json.loads(_expand(squeezed, LARGEST_MANIFEST, "manifest"))
        layers = _read_layers(manifest["layers"], blobs)
        floats = _read_floats(manifest["floats"], blobs.get("floats", b""))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise FormatError(f"manifest: not as the format says: {cause}") from error
    return layers, floats


def _open(data: bytes) -> tuple[dict[str, bytes], Json]:
    """The byte strings of a safetensors file and octavo's entry of its header, its version checked."""
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
        raise FormatError(f"format version {version} is newer than {VERSION}, the newest this octavo reads: upgrade octavo")
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"the container is truncated or damaged: {error}") from error
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items() if tensor.dtype == torch.uint8}, head


def _describe_layer(name: str, layer: Quantized) -> Json:
    top = layer.codebook.top
    return {
        "name": name,
        "names": layer.names,
        "shape": list(layer.codes.shape),
        "bits": layer.codebook.bits,
        "groups": layer.groups,
        "exponents": top.numel() if top.dim() else 0,
        "crc32": _crc(layer.codes, top.to(torch.int16)),
    }


def _describe_float(names: tuple[str, ...], value: Tensor) -> Json:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"names": names, "shape": list(value.shape), "dtype": dtype, "crc32": _crc(value)}


def _read_layers(rows: Sequence[Json], blobs: Mapping[str, bytes]) -> dict[str, Quantized]:
    streams = {}
    for bits in {row["bits"] for row in rows}:
        count = sum(prod(_shape(row)) for row in rows if row["bits"] == bits)
        name = f"codes.{bits}"
        streams[bits] = _Stream(name, _decompress(_blob(blobs, name), count, bits, name))
    size = 2 * sum(_exponents(row) for row in rows)
    tops = _Stream("exponents", _tensor(_expand(_blob(blobs, "exponents"), size, "exponents"), torch.int16))
    layers = {}
    for row in rows:
        codes = streams[row["bits"]].take(prod(_shape(row))).view(_shape(row))
        top = tops.take(_exponents(row))
        _check_crc(row["name"], row, codes, top)
        codebook = PowerOfTwo(row["bits"], (top if row["exponents"] else top[0]).int())
        layers[row["name"]] = Quantized(_names(row), codebook, codes, row["groups"])
    for stream in (*streams.values(), tops):
        stream.close()
    return layers


def _decompress(data: bytes, count: int, bits: int, name: str) -> Tensor:
    try:
        return coding.decompress(data, count, bits)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error


def _read_floats(rows: Sequence[Json], data: bytes) -> Floats:
    stream, floats = _Stream("floats", _tensor(data, torch.uint8)), []
    for row in rows:
        dtype = DTYPES[row["dtype"]]
        raw = stream.take(prod(_shape(row)) * dtype.itemsize)
        value = _tensor(raw.numpy().tobytes(), dtype).view(_shape(row))
        _check_crc(row["names"][0], row, value)
        floats.append((_names(row), value))
    stream.close()
    return floats


@dataclass
class _Stream:
    """A vector that is handed out piece by piece."""

    name: str
    values: Tensor
    position: int = 0

    def take(self, count: int) -> Tensor:
        piece = self.values[self.position : self.position + count]
        if len(piece) != count:
            raise FormatError(f"{self.name}: truncated: expected {count} more values, got {len(piece)}")
        self.position += count
        return piece

    def close(self) -> None:
        if self.position != len(self.values):
            raise FormatError(f"{self.name}: {len(self.values) - self.position} values belong to no tensor of the manifest")


def _shape(row: Json) -> list[int]:
    shape: list[int] = row["shape"]
    if not all(isinstance(size, int) and 0 <= size < 1 << 40 for size in shape):
        raise FormatError(f"{row['names'][0]}: expected a shape of sizes, got {shape}")
    return shape


def _exponents(row: Json) -> int:
    """How many exponents a layer has: one per output channel, or one (written as 0) for the layer."""
    count, shape = row["exponents"], _shape(row)
    if count != 0 and (not shape or count != shape[0]):
        raise FormatError(f"{row['name']}: expected 0 or {shape[:1]} exponents, got {count}")
    return max(1, int(count))


def _names(row: Json) -> tuple[str, ...]:
    names = tuple(row["names"])
    if not names or not all(isinstance(name, str) for name in names):
        raise FormatError(f"manifest: expected the names of a tensor, got {names}")
    return names


def _blob(blobs: Mapping[str, bytes], name: str) -> bytes:
    if name not in blobs:
        raise FormatError(f"{name}: missing in the file")
    return blobs[name]


def _check_crc(name: str, row: Json, *tensors: Tensor) -> None:
    if _crc(*tensors) != row["crc32"]:
        raise FormatError(f"{name}: its checksum does not match: the file is damaged or was altered")


def _crc(*tensors: Tensor) -> int:
    return zlib.crc32(b"".join(_raw(tensor) for tensor in tensors))


def _raw(tensor: Tensor) -> bytes:
    """A tensor's values as little-endian bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _squeeze(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(19, write_checksum=False).compress(data)


def _expand(data: bytes, most: int, name: str) -> bytes:
    """Undo ``_squeeze``, refusing more than ``most`` bytes."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:
            raise FormatError(f"{name}: expected at most {most} bytes, its header says {size}")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise FormatError(f"{name}: damaged: {error}") from error
