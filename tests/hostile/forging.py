"""A packed file to forge: a writer that puts anything into one, with the checksums that belong to
it, so that what lies behind them is reached.
"""

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import zstandard

from octavo.formats.powers_of_two import PowerOfTwo
from octavo.storage.container import pack, to_file
from octavo.storage.packed import Packed
from octavo.storage.quantized import Quantized

Strings = dict[str, bytes]


def network() -> tuple[dict[str, Quantized], list[tuple[tuple[str, ...], torch.Tensor]]]:
    draw = torch.Generator().manual_seed(0)

    def codes(*shape: int, levels: int) -> torch.Tensor:
        return torch.randint(0, levels, shape, generator=draw, dtype=torch.uint8)

    layers = {
        "conv": Quantized(
            ("conv.weight",), PowerOfTwo(3, torch.tensor([0, -3, 2, 1])), codes(4, 3, 2, levels=5)
        ),
        "up": Quantized(
            ("up.weight",), PowerOfTwo(3, torch.tensor(-1)), codes(4, 2, 3, levels=5), 2
        ),
        "fc": Quantized(
            ("fc.weight", "tied.weight"),
            PowerOfTwo(5, torch.tensor([1, -2])),
            codes(2, 20, levels=17),
        ),
    }
    return layers, [
        (("conv.bias",), torch.arange(4.0)),
        (("norm.count", "other.count"), torch.tensor(7)),
    ]


LAYERS, FLOATS = network()
DATA = to_file(*pack(LAYERS, FLOATS))


def squeeze(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def container(strings: Strings, metadata: Any, dtypes: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, blob in strings.items():
        header[name] = {
            "dtype": (dtypes or {}).get(name, "U8"),
            "shape": [len(blob)],
            "data_offsets": [position, position + len(blob)],
        }
        position += len(blob)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(strings.values())


def strings_of(data: bytes) -> Strings:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    return {
        name: data[8 + size + e["data_offsets"][0] : 8 + size + e["data_offsets"][1]]
        for name, e in header.items()
    }


def manifest_of(strings: Strings) -> Any:
    return json.loads(zstandard.ZstdDecompressor().decompress(strings["manifest"]))


def signed(strings: Strings, manifest: bytes | None = None, version: int = 1) -> bytes:
    """A file with this manifest and a header that vouches for it."""
    if manifest is not None:
        strings = {**strings, "manifest": squeeze(manifest)}
    head = {"version": version, "manifest_crc32": zlib.crc32(strings["manifest"])}
    return container(strings, {"octavo": json.dumps(head)})


def forged(edit: Callable[[Any, Strings], None]) -> bytes:
    """The good file with its manifest and byte strings edited."""
    strings = strings_of(DATA)
    manifest = manifest_of(strings)
    edit(manifest, strings)
    return signed(strings, json.dumps(manifest).encode())


def usable(layers: dict[str, Quantized], floats: Any) -> bool:
    """What was loaded can be used."""
    packed = Packed(layers, floats)
    names = [name for layer in layers.values() for name in layer.names] + [
        name for given, _ in floats for name in given
    ]
    return (
        all(isinstance(name, str) for name in (*layers, *names))
        and len(set(names)) == len(names)
        and all(bool(layer.weight().isfinite().all()) for layer in layers.values())
        and (not layers or packed.plan.cost().average_bits >= 2)
    )


@contextmanager
def little_memory(limit: int = 1 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
