"""Packed files made by hand, each with the error that it must give: what a stranger would try once
the checksums are right.
"""

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from tests.hostile.forging import (
    DATA,
    FLOATS,
    LAYERS,
    Strings,
    container,
    forged,
    little_memory,
    manifest_of,
    signed,
    squeeze,
    strings_of,
)

from octavo.errors import FormatError
from octavo.storage.container import pack, to_file, unpack
from octavo.storage.packed import Packed, verify

Edit = Callable[[Any, Strings], Any]

GOOD = strings_of(DATA)
HEAD = {"version": 1, "manifest_crc32": zlib.crc32(GOOD["manifest"])}


def layer(place: int, **fields: Any) -> Edit:
    return lambda m, s: m["layers"][place].update(fields)


def other(place: int, **fields: Any) -> Edit:
    return lambda m, s: m["floats"][place].update(fields)


def rows(name: str, value: Any) -> Edit:
    return lambda m, s: m.update({name: value})


def string(name: str, value: bytes) -> Edit:
    return lambda m, s: s.update({name: value})


def noise(size: int) -> str:
    """Letters that do not compress, so that the manifest may be large."""
    return "".join(random.Random(0).choices("0123456789abcdef", k=size))


def padded(edit: Edit) -> Edit:
    """Besides, add an entry so long that the manifest may be large; errors of others come first."""
    return lambda m, s: (edit(m, s), m.update(pad=noise(60_000)))


def many_rows(manifest: Any, strings: Strings) -> None:
    """Put one row more than is allowed into the manifest, each with a name of its own."""
    row = {"shape": [0], "dtype": "int8", "crc32": 0}
    manifest["floats"] = [{"names": [f"{n}"], **row} for n in range((1 << 15) + 1)]


def header(**fields: Any) -> bytes:
    return container(GOOD, {"octavo": json.dumps(HEAD | fields)})


def coded(count: int, dropped: bytes, content: bytes, *, bits: int = 3, more: bytes = b"") -> Edit:
    """Put a stream of codes for the layers of 3 bits into the file, with its checksum."""
    body = struct.pack("<BQB", bits, count, len(dropped)) + dropped + squeeze(content) + more
    return string("codes.3", struct.pack("<I", zlib.crc32(body)) + body)


def boolean(values: bytes) -> bytes:
    """A file with a tensor of bools whose bytes are these."""
    mask = torch.frombuffer(bytearray(values), dtype=torch.uint8)
    strings = strings_of(to_file(*pack(LAYERS, [*FLOATS, (("mask",), mask)])))
    manifest = manifest_of(strings)
    manifest["floats"][-1]["dtype"] = "bool"
    return signed(strings, json.dumps(manifest).encode())


def frames(count: int) -> Edit:
    """Put so many frames one after the other where one is expected."""
    return string("exponents", squeeze(GOOD["exponents"][:0]) * count + GOOD["exponents"])


HEADERS: list[tuple[str, bytes, str]] = [
    ("true", header(version=True), "expected a format version of 1 to 4, found True"),
    ("one as a float", header(version=1.0), "expected a format version of 1 to 4, found 1.0"),
    ("one as a text", header(version="1"), "expected a format version of 1 to 4, found '1'"),
    ("zero", header(version=0), "expected a format version of 1 to 4, found 0"),
    ("null", header(version=None), "expected a format version of 1 to 4, found None"),
    ("a list", header(version=[1] * 99), "expected a format version of 1 to 4, found [1, 1, 1"),
    ("newer", header(version=10**300), "format version 1000000000000000000"),
    ("another key", header(more=1), "the header: expected version and manifest_crc32, found"),
    ("a bool as checksum", header(manifest_crc32=True), "manifest: its checksum does not match"),
    ("a text as checksum", header(manifest_crc32="1"), "manifest: its checksum does not match"),
    (
        "another entry",
        container(GOOD, {"octavo": json.dumps(HEAD), "format": "pt"}),
        "the header: expected octavo's entry alone, found octavo, format",
    ),
    (
        "no checksum",
        container(GOOD, {"octavo": '{"version": 1}'}),
        "the header: expected version and manifest_crc32, found version",
    ),
    (
        "a header of a megabyte",
        container(GOOD, {"octavo": json.dumps(HEAD) + " " * (1 << 20)}),
        "expected a safetensors file with octavo's header, found none",
    ),
    (
        "a header of many lists",
        struct.pack("<Q", 60_000) + b"[" * 60_000,
        "expected a safetensors file with octavo's header, found none",
    ),
    (
        "a header longer than the file",
        struct.pack("<Q", (1 << 63) + 5) + b"{}",
        "expected a safetensors file with octavo's header, found none",
    ),
    (
        "two entries of one name",
        container(GOOD, {"octavo": json.dumps(HEAD)}).replace(b'"codes.3"', b'"codes.5"'),
        "the container is truncated or damaged",
    ),
]
HEADERS += [
    (
        f"a tensor of {dtype}",
        container(
            {**GOOD, "x": bytes(16)}, {"octavo": json.dumps(HEAD)}, {"x": dtype}
        ),
        said,
    )
    for dtype, said in (
        ("F4", "the container is truncated or damaged"),
        ("F6_E2M3", "the container is truncated or damaged"),
        ("F6_E3M2", "the container is truncated or damaged"),
        ("F8_E8M0", "x: expected a byte string, U8 of one dimension, found F8_E8M0"),
        ("F8_E5M2", "x: expected a byte string, U8 of one dimension, found F8_E5M2"),
        ("C64", "the container is truncated or damaged"),
        ("BOOL", "x: expected a byte string, U8 of one dimension, found BOOL"),
        ("I64", "the container is truncated or damaged"),
        ("X9", "the container is truncated or damaged"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("data", "said"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS])
def test_headers(data: bytes, said: str) -> None:
    with pytest.raises(FormatError) as caught, little_memory(16 << 20):
        unpack(data)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 400


MANIFESTS: list[tuple[str, Edit, str]] = [
    ("too many rows", many_rows, "manifest: floats: List should have at most 32768 items after va"),
    ("layers that are zeros", padded(rows("layers", [0] * 30_000)), "manifest: layers.0: Input sh"),
    ("floats that are zeros", padded(rows("floats", [0] * 30_000)), "manifest: floats.0: Input sh"),
    ("inputs that are zeros", padded(rows("activations", [0] * 9_000)), "manifest: activations.0"),
    ("names that are zeros", padded(layer(0, names=[0] * 30_000)), "manifest: conv, layers.0.nam"),
    ("a million values", padded(rows("x", [[]] * 262_144)), "manifest: expected at most 524,288"),
    ("too long", rows("x", " " * (1 << 20)), "manifest: expected at most"),
    ("a factor too many", layer(0, shape=[1] * 65), "manifest: conv, layers.0.shape: List should"),
    ("many factors", padded(layer(0, shape=[1] * 90_000)), "manifest: conv, layers.0.shape: List"),
    ("many wrong factors", padded(layer(0, shape=[-1] * 90_000)), "manifest: conv, layers.0.shap"),
    ("many factors of a float", padded(other(0, shape=[1] * 65)), "manifest: conv.bias, floats.0"),
    ("a true factor", layer(0, shape=[True, 6]), "manifest: conv, layers.0.shape.0: Input should"),
    ("a factor of 0", layer(0, shape=[4, 0]), "manifest: conv, layers.0.shape.1: Input should be"),
    ("a factor of 2^40", layer(0, shape=[1 << 40]), "manifest: conv, layers.0.shape.0: Input shou"),
    ("a factor of 6.0", layer(0, shape=[4, 6.0]), "manifest: conv, layers.0.shape.1: Input shoul"),
    ("a factor of 5000 digits", layer(0, shape=[10**4_000]), "manifest: "),
    ("no factor", layer(0, shape=[]), "manifest: conv, layers.0.shape: List should have at least"),
    ("no name", layer(0, names=[]), "manifest: conv, layers.0.names: List should have at least 1"),
    ("another key", layer(0, scale=1), "manifest: conv, layers.0.scale: Extra inputs are not per"),
    ("another key of a float", other(0, x=1), "manifest: conv.bias, floats.0.x: Extra inputs are"),
    ("another entry", rows("x", 1), "manifest: x: Extra inputs are not permitted"),
    ("an unknown type", other(0, dtype="float8"), "manifest: conv.bias, floats.0.dtype: String sh"),
    ("a type with a line", other(0, dtype="bool\n"), "manifest: conv.bias, floats.0.dtype: String"),
    ("a type of torch", other(0, dtype="complex64"), "manifest: conv.bias, floats.0.dtype: String"),
    ("true bits", layer(0, bits=True), "manifest: conv, layers.0.bits: Input should be a valid in"),
    ("1 bit", layer(0, bits=1), "manifest: conv, layers.0.bits: Input should be greater than or"),
    ("9 bits", layer(0, bits=9), "manifest: conv, layers.0.bits: Input should be less than or eq"),
    ("an unknown grid", layer(0, grid="x"), "manifest: conv, layers.0.grid: Input should be 'powe"),
    ("3 groups", layer(0, groups=3), "manifest: conv, layers.0: conv: 3 groups do not divide"),
    ("negative groups", layer(0, groups=-1), "manifest: conv, layers.0.groups: Input should be gr"),
    ("2 exponents", layer(0, exponents=2), "manifest: conv, layers.0: conv: expected 0 or 4 expo"),
    ("a wrong checksum", layer(0, crc32=1), "conv: its checksum does not match"),
    ("a wrong checksum of a float", other(1, crc32=1), "norm.count: its checksum does not match"),
    ("a negative checksum", layer(0, crc32=-1), "conv: its checksum does not match"),
    ("the same name", layer(1, name="conv"), "manifest: conv: two tensors have this name"),
    ("the same tensor", other(0, names=["fc.weight"]), "manifest: fc.weight: two tensors have thi"),
    ("a name that steers", layer(0, name="\x1b[2J", crc32=1), r"\x1b[2J: its checksum does not"),
    ("a name that turns", layer(0, name="a\u202eb", crc32=1), r"a\u202eb: its checksum does not"),
    ("a name of two lines", layer(0, name="a\nb", crc32=1), r"a\nb: its checksum does not match"),
    ("a surrogate", layer(0, name="\ud800"), "manifest: "),
    ("a long name", layer(0, name=noise(50_000), crc32=1), "dc6486c479e84c94efce4bea7169ef7d4c80"),
    ("an input twice", rows("activations", [{"name": "", "bits": 4, "signed": True,
        "power_of_two": True}] * 2), "manifest: : expected one row, and input_quantizer.step"),
    ("2^30 codes", layer(0, shape=[1 << 30]), "manifest: conv, layers.0: conv: expected 0 or"),
    ("2^30 codes, an exponent", layer(0, shape=[1 << 30], exponents=0), "expected at most 268,435"),
    ("2^39 codes", layer(0, shape=[1 << 39], exponents=0), "expected at most 268,435,456 bytes on"),
    ("2^300 codes", layer(0, shape=[1 << 30] * 10, exponents=0), "expected at most 268,435,456 by"),
    ("2^30 floats", other(0, shape=[1 << 30]), "expected at most 268,435,456 bytes once decoded,"),
    ("2^64 floats", other(0, shape=[1 << 32, 1 << 32]), "expected at most 268,435,456 bytes once"),
    ("no floats of 2^78", other(0, shape=[0, 1 << 39, 1 << 39]), "conv.bias: its checksum does"),
    ("2^28 exponents", layer(0, shape=[1 << 28, 1], exponents=1 << 28), "expected at most 268,435"),
    ("fewer codes", layer(0, shape=[4, 5]), "codes.3: expected 44 codes of 3 bits, found 48 of 3"),
    ("more codes", layer(0, shape=[4, 7]), "codes.3: expected 52 codes of 3 bits, found 48 of 3"),
    ("no codes", lambda m, s: s.pop("codes.3"), "codes.3: missing in the file"),
    ("no exponents", lambda m, s: s.pop("exponents"), "exponents: missing in the file"),
    ("no floats", lambda m, s: s.pop("floats"), "floats: truncated: expected 16 more values, got"),
    ("no layers", rows("layers", []), "exponents: expected at most 0 bytes, its header says 14"),
    ("no floats in the manifest", rows("floats", []), "floats: 24 values belong to no tensor"),
    ("an unknown string", string("x", b"1"), "x: expected no byte string of this name in a file"),
    ("an empty one", string("x", b""), "x: expected no byte string of this name in a file of ver"),
    ("codes of no layer", string("codes.4", GOOD["codes.3"]), "codes.4: expected no byte string"),
    ("both floats", string("floats.zstd", squeeze(b"")), "floats.zstd: expected no byte string"),
    ("a name that steers, of a string", string("\x1b[m", b"1"), r"\x1b[m: expected no byte string"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "said"), [m[1:] for m in MANIFESTS], ids=[m[0] for m in MANIFESTS]
)
def test_manifests(edit: Edit, said: str) -> None:
    data = forged(edit)
    with pytest.raises(FormatError) as caught, little_memory(40 << 20):
        unpack(data)
    assert str(caught.value).startswith(said)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2_100


ZEROS = bytes(16)  # the groups of 48 codes at 3 bits, three a byte
STREAMS: list[tuple[str, Edit, str]] = [
    (
        "garbage after the codes",
        coded(48, b"", ZEROS, more=b"x"),
        "codes.3: broken zstandard frame",
    ),
    ("a frame more", coded(48, b"", ZEROS, more=squeeze(b"")), "codes.3: broken zstandard frame"),
    ("a byte more", coded(48, b"", ZEROS + b"\0"), "codes.3: expected nothing after the last code"),
    ("a byte fewer", coded(48, b"", ZEROS[1:]), "codes.3: expected 16 bytes for 48 symbols, found"),
    ("codes of 4 bits", coded(48, b"", ZEROS, bits=4), "codes.3: expected 48 codes of 3 bits, fou"),
    ("a symbol too large", coded(48, b"", b"\xff" * 16), "codes.3: expected symbols below 5, foun"),
    ("a dropped code too large", coded(48, b"\5", bytes(6)), "codes.3: expected codes below 5 at"),
    ("255 rounds", coded(48, bytes(255), bytes(9)), "codes.3: expected nothing after the last co"),
    ("a mask that is cut", coded(48, b"\0", bytes(5)), "codes.3: expected 6 bytes for 6 symbols,"),
    ("fewer than the mask says", coded(48, b"\0", b"\xff" * 6), "codes.3: expected 12 bytes for 4"),
    ("more than the mask says", coded(48, b"\0", bytes(7)), "codes.3: expected nothing after the"),
    ("cut before the frame", string("codes.3", GOOD["codes.3"][:9]), "codes.3: cut short: expecte"),
    (
        "a wrong checksum",
        string("codes.3", b"x" + GOOD["codes.3"][1:]),
        "codes.3: damaged or cut s",
    ),
    ("no frame at all", string("exponents", b"no frame"), "exponents: damaged: "),
    ("garbage after the exponents", string("exponents", GOOD["exponents"] + b"x"), "exponents: da"),
    ("exponents twice", string("exponents", GOOD["exponents"] * 2), "exponents: damaged: "),
    ("empty frames before", frames(3), "exponents: damaged: "),
    (
        "a frame to skip",
        string("exponents", b"\x50\x2a\x4d\x18\1\0\0\0x" + GOOD["exponents"]),
        "exp",
    ),
    (
        "too many exponents",
        string("exponents", squeeze(bytes(16))),
        "exponents: expected at most 1",
    ),
    ("too few exponents", string("exponents", squeeze(bytes(12))), "conv: its checksum does not"),
    (
        "half an exponent",
        string("exponents", squeeze(bytes(13))),
        "manifest: its tensors do not fit",
    ),
    (
        "more floats",
        string("floats", GOOD["floats"] + b"x"),
        "floats: 1 values belong to no tensor",
    ),
    ("fewer floats", string("floats", GOOD["floats"][1:]), "conv.bias: its checksum does not matc"),
    ("an exponent of 128", lambda m, s: exponents(m, s, 128), "conv: expected exponents from -149"),
    (
        "an exponent of -150",
        lambda m, s: exponents(m, s, -150),
        "conv: expected exponents from -14",
    ),
]


def exponents(manifest: Any, strings: Strings, value: int) -> None:
    """Give the first layer an exponent, with the checksum that belongs to it."""
    values = struct.pack("<7h", value, -3, 2, 1, -1, 1, -2)
    strings["exponents"] = squeeze(values)
    codes = LAYERS["conv"].codes.numpy().tobytes()
    manifest["layers"][0]["crc32"] = zlib.crc32(codes + values[:8])


@pytest.mark.parametrize(("edit", "said"), [s[1:] for s in STREAMS], ids=[s[0] for s in STREAMS])
def test_streams(edit: Edit, said: str) -> None:
    data = forged(edit)
    with pytest.raises(FormatError) as caught, little_memory():
        unpack(data)
    assert str(caught.value).startswith(said)


def padding(place: int, value: int) -> bytes:
    """A file of one layer of 4 codes at 3 bits, of which the last byte has room for more."""
    tiny = {"a": LAYERS["fc"].__class__(("a",), LAYERS["conv"].codebook, torch.ones(4, 1).byte())}
    strings = strings_of(to_file(*pack(tiny, [])))
    content = bytearray(b"\x1f\x01")  # 1 + 5 + 25, and 1
    content[place] += value
    body = struct.pack("<BQB", 3, 4, 0) + squeeze(bytes(content))
    codes = struct.pack("<I", zlib.crc32(body)) + body
    return signed({**strings, "codes.3": codes}, json.dumps(manifest_of(strings)).encode())


def test_padding_of_codes_is_zero() -> None:
    assert unpack(padding(0, 0))[0]["a"].codes.flatten().tolist() == [1, 1, 1, 1]
    for value in (5, 25, 50):
        with pytest.raises(FormatError, match=r"^codes\.3: expected zeros after the last symbol"):
            unpack(padding(1, value))


def test_padding_of_a_mask_is_zero() -> None:
    codes = torch.zeros(12, dtype=torch.uint8)
    codes[3] = 2
    tiny = {"a": LAYERS["fc"].__class__(("a",), LAYERS["up"].codebook, codes)}
    strings = strings_of(to_file(*pack(tiny, [])))
    manifest = json.dumps(manifest_of(strings)).encode()
    for mask, said in ((b"\x10\0", ""), (b"\x10\1", "expected zeros after"), (b"\x10\x08", "zero")):
        body = struct.pack("<BQB", 3, 12, 1) + b"\0" + squeeze(mask + b"\1")
        data = signed({**strings, "codes.3": struct.pack("<I", zlib.crc32(body)) + body}, manifest)
        if said:
            with pytest.raises(FormatError, match=said):
                unpack(data)
        else:
            assert torch.equal(unpack(data)[0]["a"].codes, codes)


def test_bools_are_0_and_1() -> None:
    assert unpack(boolean(b"\0\1\1"))[1][-1][1].tolist() == [False, True, True]
    for values in (b"\0\2\1", b"\xff"):
        with pytest.raises(
            FormatError, match=r"^mask: expected bools of 0 and 1, found other bytes"
        ):
            unpack(boolean(values))


# A small file of a large network.


def large(count: int) -> bytes:
    """A file of a few hundred bytes that decodes to so many codes."""
    tiny = {"a": LAYERS["fc"].__class__(("a",), LAYERS["up"].codebook, torch.zeros(1).byte())}
    strings = strings_of(to_file(*pack(tiny, [])))
    manifest = manifest_of(strings)
    manifest["layers"][0]["shape"] = [count]
    return signed(strings, json.dumps(manifest).encode())


@pytest.mark.parametrize("count", [(1 << 28) - 1, 1 << 30, 1 << 39])
def test_a_large_network_is_refused_before_memory_is_taken(count: int, tmp_path: Path) -> None:
    data = large(count)
    assert len(data) < 500
    (tmp_path / "x.safetensors").write_bytes(data)
    said = f"once decoded, found {count + 2:,}; if you trust the file, pass a higher limit"
    for read in (Packed.load, verify):
        with pytest.raises(FormatError, match=said) as caught, little_memory():
            read(tmp_path / "x.safetensors")
        assert str(caught.value).startswith(
            f"{tmp_path}/x.safetensors: expected at most 268,435,456"
        )


def test_a_limit_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DATA)
    codes = sum(one.codes.numel() for one in LAYERS.values())
    exact = codes + 2 * 7 + 4 * 4 + 8
    for limit in (exact, 1 << 40):
        verify(path, limit=limit)
        assert Packed.load(path, limit=limit).layers.keys() == LAYERS.keys()
    for limit in (exact - 1, 1, 0):
        with pytest.raises(FormatError, match=f"at most {limit} bytes once decoded, found {exact}"):
            Packed.load(path, limit=limit)


@pytest.mark.parametrize("name", ["a\0b", "\0", "x" * 300, "none", "."])
def test_paths_that_are_none(name: str, tmp_path: Path) -> None:
    for read in (Packed.load, verify):
        with pytest.raises(FormatError):
            read(f"{tmp_path}/{name}")


def test_many_small_layers_take_little_time() -> None:
    count = 5_000
    tiny = LAYERS["fc"].__class__(("",), LAYERS["up"].codebook, torch.zeros(1).byte())
    codes = torch.zeros(count, dtype=torch.uint8)
    strings = strings_of(to_file(*pack({"a": tiny.__class__(("a",), tiny.codebook, codes)}, [])))
    row = manifest_of(strings_of(to_file(*pack({"a": tiny}, []))))["layers"][0]
    named = [{**row, "name": f"{n}", "names": [f"{n}"]} for n in range(count)]
    strings["exponents"] = squeeze(struct.pack("<h", -1) * count)
    layers, _, _ = unpack(signed(strings, json.dumps({"layers": named, "floats": []}).encode()))
    assert len(layers) == count


def test_unsized_frames_of_a_manifest() -> None:
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}" * 100)
    with pytest.raises(FormatError, match=r"^manifest: expected at most"):
        unpack(signed({**GOOD, "manifest": unsized}))
