"""Codes and exponents of layers in both codings: the same comes back, what is wrong is named."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.errors import FormatError, PlanError
from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot, Width
from octavo.storage.container import pack, to_file, unpack
from octavo.storage.layer_strings import EXPONENTS, SMALL, layer_strings
from octavo.storage.packed import Packed, verify
from octavo.storage.quantized import Quantized
from octavo.storage.streams import squeeze

pytest.importorskip("constriction")


def layer(width: Any, shape: tuple[int, ...], exponent: torch.Tensor, size: int = 0) -> Quantized:
    codebook = codebook_at(width, exponent, size)
    draw = torch.Generator().manual_seed(len(shape))
    codes = torch.randint(0, len(codebook.unit_levels()), shape, generator=draw)
    return Quantized(("w",), codebook, codes.to(torch.uint8))


LAYERS = {
    "conv": layer(3, (4, 6, 3, 3), torch.tensor([0, -3, 2, 1])),
    "one": layer(5, (3, 8), torch.tensor(-7)),
    "sums": layer(Apot(5), (3, 8), torch.tensor([1, -1, 0])),
    "grouped": layer(Width(4, "fp"), (2, 8), torch.tensor([[0, -2], [3, 3]]), 4),
}


def file(layers: dict[str, Quantized], coding: Any = "small", **changes: bytes) -> bytes:
    named = {
        name: Quantized((f"{name}.weight",), one.codebook, one.codes)
        for name, one in layers.items()
    }
    blobs, version = pack(named, [], None, coding)
    return to_file({**blobs, **changes}, version)


def same(layers: dict[str, Quantized], found: dict[str, Quantized]) -> bool:
    return layers.keys() == found.keys() and all(
        torch.equal(one.codes, found[name].codes)
        and torch.equal(one.weight(), found[name].weight())
        for name, one in layers.items()
    )


@pytest.mark.parametrize("coding", ["fast", "small"])
def test_what_is_written_is_what_is_read(coding: Any, tmp_path: Path) -> None:
    for layers in (LAYERS, {"conv": LAYERS["conv"]}, {"one": LAYERS["one"]}, {}):
        assert same(layers, unpack(file(layers, coding))[0])
    path = tmp_path / "net.safetensors"
    packed = Packed(LAYERS, []).with_coding(coding)
    packed = Packed(unpack(file(LAYERS))[0], []).with_coding(coding)
    packed.save(path)
    verify(path)
    again = Packed.load(path)
    assert again.coding == coding
    assert again.file_bytes == packed.file_bytes == path.stat().st_size
    assert again.stored_bits == packed.stored_bits


def test_a_network_without_quantized_layers_needs_no_coding() -> None:
    assert file({}, "small") == file({}, "fast")


def test_files_of_the_fast_coding_stay_as_they_are() -> None:
    assert SMALL not in layer_strings(LAYERS, "fast")
    assert set(layer_strings(LAYERS, "small")) == {SMALL, EXPONENTS}


def test_an_unknown_coding_is_refused() -> None:
    with pytest.raises(PlanError, match='coding: expected "fast" or "small", got \'tiny\''):
        Packed({}, []).with_coding("tiny")  # type: ignore[arg-type]


def test_exponents_that_are_too_far_apart_are_left_to_the_fast_coding() -> None:
    far = {"far": layer(3, (2, 4), torch.tensor([-149, 127]))}
    with pytest.raises(PlanError, match=r'^far: expected .* within 254 .* the coding "fast"'):
        file(far)
    assert same(far, unpack(file(far, "fast"))[0])


def other(edit: Callable[[dict[str, Quantized]], dict[str, Quantized]]) -> bytes:
    return layer_strings(edit(LAYERS), "small")[SMALL]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({SMALL: b""}, "^codes.small: missing|^codes.3: missing"),
        ({SMALL: b"x"}, "^codes.small: cut short"),
        ({SMALL: other(lambda layers: {"conv": layers["conv"]})}, "^codes.small: "),
        ({EXPONENTS: b""}, "^exponents: missing"),
        ({EXPONENTS: squeeze(struct.pack("<3h", 2, -7, 1))}, "^exponents: truncated"),
        ({EXPONENTS: squeeze(b"\0" * 10)}, "^exponents: expected at most 8 bytes"),
        ({EXPONENTS: squeeze(b"\0" * 8)}, "^conv: its checksum does not match"),
        ({"codes.3": b"more"}, r"^codes\.3: expected no byte string of this name"),
        ({"exponents.groups": b"more"}, r"^exponents\.groups: expected no byte string"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, bytes], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(file(LAYERS, **changes))


def test_older_versions_have_no_small_coding() -> None:
    blobs, _ = pack({"conv": LAYERS["conv"]}, [], None, "small")
    for version in (1, 2, 3):
        with pytest.raises(FormatError, match=r"codes\.small|floats"):
            unpack(to_file(blobs, version))


def test_every_flipped_bit_is_noticed() -> None:
    data = file(LAYERS)
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(FormatError):
            unpack(bytes(flipped))
