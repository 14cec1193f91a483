"""Files that are damaged, forged or not ours: always a FormatError that says where, and never much
memory."""

import copy
import io
import json
import math
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    usable,
)

from octavo.activations.quantizer import InputFormat
from octavo.errors import FormatError
from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot
from octavo.storage.container import pack, to_file, unpack
from octavo.storage.packed import Packed, verify
from octavo.storage.quantized import Quantized


def test_the_writer_of_these_tests_writes_good_files() -> None:
    for data in (DATA, forged(lambda manifest, strings: None)):
        layers, floats, _ = unpack(data)
        assert usable(layers, floats)
        assert [layer.names for layer in layers.values()] == [
            layer.names for layer in LAYERS.values()
        ]
        assert all(
            torch.equal(layers[name].weight(), layer.weight()) for name, layer in LAYERS.items()
        )


# Damage.


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for length in [*range(0, len(DATA), 50), *range(30), *range(len(DATA) - 10, len(DATA))]:
        path.write_bytes(DATA[:length])
        with pytest.raises(FormatError, match=r"cut|truncated|damaged") as caught:
            Packed.load(path)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("more", [b"\0", b"more", DATA])
def test_bytes_at_the_end_are_noticed(more: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(DATA + more)


def test_every_flipped_bit_is_noticed() -> None:
    header = 8 + int.from_bytes(DATA[:8], "little")
    for place in range(len(DATA)):
        for bit in range(8) if place % 7 == 0 else [place % 8]:
            flipped = bytearray(DATA)
            flipped[place] ^= 1 << bit
            with pytest.raises(FormatError) as caught:
                unpack(bytes(flipped))
            message = str(caught.value)
            assert "\n" not in message
            if place >= header:
                name = next(n for n, start, end in spans() if start <= place < end)
                assert name in message, (place, name, message)


def spans() -> list[tuple[str, int, int]]:
    """Where the byte strings are, and what a message about them names: a floats' tensor, else the
    byte string."""
    size = int.from_bytes(DATA[:8], "little")
    entries = json.loads(DATA[8 : 8 + size])
    found = []
    for name, entry in entries.items():
        if name == "floats":
            start = 8 + size + entry["data_offsets"][0]
            found += [("conv.bias", start, start + 16), ("norm.count", start + 16, start + 24)]
        elif name != "__metadata__":
            found.append(
                (
                    name.removesuffix("exponents"),
                    *(8 + size + offset for offset in entry["data_offsets"]),
                )
            )
    return found


@pytest.mark.parametrize(
    ("string", "named"),
    [
        ("codes.3", "codes.3"),
        ("codes.5", "codes.5"),
        ("exponents", "exponents|conv|up|fc"),
        ("manifest", "manifest"),
    ],
)
def test_a_string_that_was_replaced_is_named(string: str, named: str) -> None:
    for other in (b"", b"x", b"\0" * 100, squeeze(b"\0" * 14), strings_of(DATA)["floats"]):
        strings = {**strings_of(DATA), string: other}
        manifest = zlib.crc32(strings_of(DATA)["manifest"])
        data = container(
            strings, {"octavo": json.dumps({"version": 1, "manifest_crc32": manifest})}
        )
        with pytest.raises(FormatError, match=named):
            unpack(data)


@pytest.mark.parametrize("name", ["manifest", "codes.3", "codes.5", "exponents", "floats"])
def test_a_string_that_is_missing_is_named(name: str) -> None:
    def drop(_: Any, strings: Strings) -> None:
        del strings[name]

    strings = strings_of(DATA)
    head = {"version": 1, "manifest_crc32": zlib.crc32(strings.pop("manifest"))}
    data = container(strings, {"octavo": json.dumps(head)}) if name == "manifest" else forged(drop)
    with pytest.raises(FormatError, match=name):
        unpack(data)


@pytest.mark.parametrize("name", ["codes.3", "exponents", "floats", "manifest"])
@pytest.mark.parametrize("dtype", ["I8", "BOOL", "F4", "F8_E4M3", "F32", "X9"])
def test_strings_of_another_type(name: str, dtype: str) -> None:
    strings = strings_of(DATA)
    head = json.dumps({"version": 1, "manifest_crc32": zlib.crc32(strings["manifest"])})
    with pytest.raises(FormatError):
        unpack(container(strings, {"octavo": head}, {name: dtype}))


def test_a_wrong_checksum_is_named() -> None:
    for place, name in enumerate(("conv", "up", "fc")):
        for wrong in (0, "0", None, -1, 1.5):
            with pytest.raises(
                FormatError,
                match=f"^{name}: its checksum does not match|^manifest: {name}, .*crc32",
            ):
                unpack(forged(lambda m, _, p=place, w=wrong: m["layers"][p].update(crc32=w)))  # type: ignore[misc]
    with pytest.raises(FormatError, match=r"^norm\.count: its checksum does not match"):
        unpack(forged(lambda m, _: m["floats"][1].update(crc32=1)))


# Not ours.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x00" * 8,
        b"\x00" * 200,
        b"PK\x03\x04" + b"x" * 100,
        b"{}",
        b"\xff" * 64,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 1 << 63) + b"{" * 100,
        b"# a text\n" * 20,
    ],
)
def test_what_is_no_safetensors_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    for read in (Packed.load, verify):
        with (
            pytest.raises(
                FormatError, match="expected a safetensors file with octavo's header, found none"
            ),
            little_memory(),
        ):
            read(path)


def test_another_safetensors_file_is_not_ours(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "plain.safetensors", metadata)
        with pytest.raises(FormatError, match="octavo's header, found none: not octavo's"):
            verify(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "x",
        "[]",
        "3",
        "null",
        '"version"',
        "{}",
        '{"version": null}',
        '{"version": "1"}',
        '{"version": 1}',
        "[" * 10**5,
        '{"version": 1, "manifest_crc32": "x"}',
        '{"version": 1, "manifest_crc32": null}',
        "1" * 5000,
        '{"version": 1e999}',
        '{"version": {"version": 1}}',
        '{"version": [1]}',
        '{"version": 0}',
        '{"version": -7}',
    ],
)
def test_headers_that_say_nothing(entry: str) -> None:
    with pytest.raises(FormatError):
        unpack(container(strings_of(DATA), {"octavo": entry}))


@pytest.mark.parametrize(
    "metadata",
    [[], "x", 3, {"octavo": 3}, {"octavo": None}, {"octavo": {"version": 1}}, {"Octavo": "{}"}],
)
def test_metadata_of_another_kind(metadata: Any) -> None:
    with pytest.raises(FormatError, match="octavo's header, found none"):
        unpack(container(strings_of(DATA), metadata))


def test_a_newer_version_says_so_before_anything_else() -> None:
    strings = {**strings_of(DATA), "manifest": b"all is different there"}
    for version in (5, 99, 10**30):
        data = container(strings, {"octavo": json.dumps({"version": version})})
        with pytest.raises(
            FormatError, match=f"version {version} is newer than 4, .*: upgrade octavo"
        ):
            unpack(data)


def apot(manifest: Any, strings: Strings) -> None:
    """The first layer on the other grid, its codes as they were."""
    manifest["layers"][2].update(grid="apot")
    strings["codes.apot5"] = strings.pop("codes.5")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda m, s: m["layers"][0].update(grid="apot"),
            r"^manifest: conv, .*: expected 5 to 8 bits on the grid apot, got 3",
        ),
        (
            lambda m, s: m["layers"][2].update(grid="cubes"),
            r"^manifest: fc, layers\.2\.grid: Input should be 'powers', 'apot', 'fp' or 'int'",
        ),
        (
            lambda m, s: m["layers"][2].update(grid=None),
            r"^manifest: fc, layers\.2\.grid: Input should be",
        ),
        (apot, r"^fc: expected the grid powers in a file of version 1, got apot"),
    ],
)
def test_grids_that_are_unknown_or_do_not_fit(edit: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(forged(edit))


def test_the_other_grid_wants_its_own_stream_and_exponents_within_its_range() -> None:
    strings = strings_of(DATA)
    manifest = manifest_of(strings)
    manifest["layers"][2].update(grid="apot")
    text = json.dumps(manifest).encode()

    def file(**more: bytes) -> bytes:
        given = {
            **strings,
            **{f"codes.{name}": blob for name, blob in more.items()},
            "manifest": squeeze(text),
        }
        given.pop("codes.5")
        head = {"version": 2, "manifest_crc32": zlib.crc32(given["manifest"])}
        return container(given, {"octavo": json.dumps(head)})

    with pytest.raises(FormatError, match=r"^codes\.apot5: missing in the file"):
        unpack(file())
    assert unpack(file(apot5=strings["codes.5"]))[0]["fc"].codebook.width == Apot(5)
    # such codes are legal there too
    layer = manifest["layers"][2]
    tops = struct.pack("<2h", -127, 0)
    codes = unpack(file(apot5=strings["codes.5"]))[0]["fc"].codes.numpy().tobytes()
    layer["crc32"] = zlib.crc32(codes + tops)
    text = json.dumps(manifest).encode()
    exponents = zstandard.ZstdDecompressor().decompress(strings["exponents"])
    strings["exponents"] = squeeze(exponents[:-4] + tops)
    with pytest.raises(
        FormatError, match=r"^fc: expected exponents from -126 to 127, got -127 to 0"
    ):
        unpack(file(apot5=strings["codes.5"]))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for name, content in (("a.pkl", pickle.dumps(Trap())), ("b.pt", torch_file(Trap()))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match="not octavo's"):
            Packed.load(tmp_path / name)
    inside = {
        **strings_of(DATA),
        "manifest": squeeze(pickle.dumps(Trap())),
        "floats": pickle.dumps(Trap()),
    }
    with pytest.raises(FormatError, match="manifest"):
        unpack(signed(inside))
    assert not (tmp_path / "sprung").exists()


def torch_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_folders_and_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none" / "none", tmp_path / ("x" * 300)):
        for read in (Packed.load, verify):
            with pytest.raises(FormatError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")


@given(st.binary(max_size=300), st.integers(0, 400))
@settings(deadline=None, max_examples=60)
def test_garbage(content: bytes, place: int) -> None:
    for data in (
        content,
        DATA[:place] + content,
        DATA[:place] + content + DATA[place + len(content) :],
    ):
        if data != DATA:
            with pytest.raises(FormatError):
                unpack(data)


# Forged manifests, with checksums that are right.

JUNK = [
    None,
    True,
    "",
    "x",
    0,
    -1,
    1,
    1.5,
    2**40,
    10**40,
    math.nan,
    [],
    ["x"],
    [None],
    {},
    {"x": 1},
    [[1]],
    [-1],
    [2**62, 2**62],
]


def check_junk(rows: str, key: str, junk: Any) -> None:
    for place in range(2):
        with little_memory(4 << 20):
            data = forged(lambda m, _, p=place: m[rows][p].update({key: copy.deepcopy(junk)}))  # type: ignore[misc]
            try:
                layers, floats, _ = unpack(data)
            except FormatError as error:
                message = str(error)
            else:
                message = "one line" if usable(layers, floats) else "neither refused\nnor usable"
            assert "\n" not in message


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("key", ["names", "shape", "bits", "exponents", "crc32", "name", "groups"])
def test_junk_in_the_row_of_a_layer(key: str, junk: Any) -> None:
    check_junk("layers", key, junk)


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("key", ["names", "shape", "dtype", "crc32"])
def test_junk_in_the_row_of_another_tensor(key: str, junk: Any) -> None:
    check_junk("floats", key, junk)


@pytest.mark.parametrize(("rows", "keys"), [("layers", 7), ("floats", 4)])
def test_missing_keys(rows: str, keys: int) -> None:
    names = list(manifest_of(strings_of(DATA))[rows][0])
    assert len(names) == keys
    for key in names:
        with pytest.raises(FormatError, match=key):
            unpack(forged(lambda m, _, k=key: m[rows][0].pop(k)))  # type: ignore[misc]


@pytest.mark.parametrize(
    "junk", [None, 3, True, "rows", [3], [None], ["x"], [[]], {"a": 1}], ids=repr
)
@pytest.mark.parametrize("rows", ["layers", "floats"])
def test_rows_that_are_none(rows: str, junk: Any) -> None:
    with pytest.raises(FormatError, match="manifest"):
        unpack(forged(lambda m, _: m.update({rows: junk})))
    with pytest.raises(FormatError, match=rows):
        unpack(forged(lambda m, _: m.pop(rows)))


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"x",
        b"{}",
        b"[]",
        b"null",
        b"3",
        b'"layers"',
        b"[" * 100000,
        b'{"layers":' * 50000,
        b"\xff\xfe\xfd",
        b"\x00" * 10,
        b'{"layers": ' + b"1" * 5000 + b"}",
        b'{"layers": [], "floats": []} x',
    ],
)
def test_manifests_that_are_none(manifest: bytes) -> None:
    with pytest.raises(FormatError, match="manifest") as caught:
        unpack(signed(strings_of(DATA), manifest))
    assert "\n" not in str(caught.value)


def test_rows_that_are_left_out_or_come_twice() -> None:
    for rows in ("layers", "floats"):
        for place in (0, -1):
            with pytest.raises(FormatError, match=r"codes|exponents|floats|conv|up|norm"):
                unpack(forged(lambda m, _, r=rows, p=place: m[r].pop(p)))  # type: ignore[misc]
            with pytest.raises(FormatError, match=r"codes|floats|fc|conv|norm"):
                unpack(forged(lambda m, _, r=rows, p=place: m[r].append(m[r][p])))  # type: ignore[misc]
        with pytest.raises(FormatError, match=r"checksum|codes|exponents"):
            unpack(forged(lambda m, _, r=rows: m[r].reverse()))  # type: ignore[misc]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["layers"][1].update(name="conv"),
        lambda m: m["layers"][1].update(names=["conv.weight"]),
        lambda m: m["layers"][2].update(names=["fc.weight", "fc.weight"]),
        lambda m: m["floats"][0].update(names=["fc.weight"]),
        lambda m: m["floats"][1].update(names=["conv.bias"]),
    ],
)
def test_names_that_come_twice(edit: Callable[[Any], None]) -> None:
    with pytest.raises(FormatError, match=r"conv|fc\.weight"):
        unpack(forged(lambda m, _: edit(m)))


@pytest.mark.parametrize("bits", [0, 1, 9, 255, -3, 4, 5, 3.0, True])
def test_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(FormatError, match=r"codes|bits"):
        unpack(forged(lambda m, _: m["layers"][0].update(bits=bits)))
    with pytest.raises(FormatError, match=r"codes|bits"):
        unpack(
            forged(
                lambda m, s: (
                    m["layers"][0].update(bits=bits) or s.update({f"codes.{bits}": s["codes.3"]})
                )
            )
        )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 24, -4, 2**40])
def test_another_number_of_exponents(count: int) -> None:
    with (
        pytest.raises(
            FormatError, match=r"^manifest: conv, layers\.0.*(expected 0 or 4 exponents|than)"
        ),
        little_memory(),
    ):
        unpack(forged(lambda m, _: m["layers"][0].update(exponents=count)))


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\0" * 12, b"\0" * 13, b"\0" * 15, b"\0" * 16, b"\0" * 10_000]
)
def test_exponents_that_are_too_few_or_too_many(content: bytes) -> None:
    with pytest.raises(FormatError, match=r"exponents|conv|manifest"):
        unpack(forged(lambda m, s: s.update(exponents=squeeze(content))))


@pytest.mark.parametrize("exponent", [128, 1000, 32767, -150, -32768])
def test_exponents_out_of_range(exponent: int) -> None:
    def edit(manifest: Any, strings: Strings) -> None:
        values = [exponent, -3, 2, 1, -1, 1, -2]
        strings["exponents"] = squeeze(struct.pack("<7h", *values))
        first = LAYERS["conv"].codes.numpy().tobytes() + struct.pack("<4h", *values[:4])
        manifest["layers"][0]["crc32"] = zlib.crc32(first)

    with pytest.raises(FormatError, match="conv"):
        unpack(forged(edit))


@pytest.mark.parametrize("groups", [3, 8, -1, -2, 5, 2**40, 1.5, "2", None, [2]])
def test_groups_that_do_not_divide(groups: Any) -> None:
    with pytest.raises(FormatError, match="up"):
        unpack(forged(lambda m, _: m["layers"][1].update(groups=groups)))


def test_groups_of_what_has_no_inputs() -> None:
    with pytest.raises(FormatError, match="up"):
        unpack(forged(lambda m, _: m["layers"][1].update(groups=2, shape=[24])))


@pytest.mark.parametrize(
    "shape",
    [
        [4, 3, 3],
        [4, 5],
        [24, 2],
        [2**31, 2**31],
        [2**39] * 8,
        [-4, -6],
        [0],
        [4, 6.0],
        [[4, 6]],
        "46",
        None,
        {"4": 6},
    ],
)
def test_absurd_shapes(shape: Any) -> None:
    with little_memory():
        with pytest.raises(FormatError):
            unpack(forged(lambda m, _: m["layers"][0].update(shape=shape)))
        with pytest.raises(FormatError):
            unpack(forged(lambda m, _: m["floats"][0].update(shape=shape)))


# Bombs: small files that would grow.


def claims(size: int) -> bytes:
    """The start of a frame that says it holds so much."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\0\0"


@pytest.mark.parametrize("size", [1 << 27, 1 << 40, (1 << 64) - 3])
def test_frames_that_claim_much(size: int) -> None:
    strings = strings_of(DATA)
    with little_memory():
        with pytest.raises(FormatError, match="manifest: expected at most"):
            unpack(signed({**strings, "manifest": claims(size)}))
        with pytest.raises(FormatError, match="exponents: expected at most 14 bytes"):
            unpack(signed({**strings, "exponents": claims(size)}))
        for count in (48, size):
            content = struct.pack("<BQB", 3, count, 0) + claims(size)
            with pytest.raises(FormatError, match=r"codes\.3"):
                unpack(
                    signed({**strings, "codes.3": struct.pack("<I", zlib.crc32(content)) + content})
                )


def test_frames_that_do_not_say_their_size() -> None:
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress
    for name in ("manifest", "exponents"):
        with pytest.raises(FormatError, match=name), little_memory():
            unpack(signed({**strings_of(DATA), name: unsized(bytes(1 << 20))}))


def test_frames_that_grow() -> None:
    bomb = squeeze(bytes(1 << 27))
    assert len(bomb) < 1 << 14
    for name in ("manifest", "exponents"):
        with pytest.raises(FormatError, match=name), little_memory():
            unpack(signed({**strings_of(DATA), name: bomb}))


# Floats that are compressed: version 3.

SQUEEZED = strings_of(to_file(*pack(LAYERS, [*FLOATS, (("norm.scale",), torch.zeros(64))])))
SIZE = 4 * 4 + 8 + 4 * 64  # of its floats


@pytest.mark.parametrize("size", [0, 23, SIZE - 1, SIZE, SIZE + 1, 1 << 27])
def test_compressed_floats_that_are_too_few_too_many_or_others(size: int) -> None:
    data = signed({**SQUEEZED, "floats.zstd": squeeze(bytes(size))}, version=3)
    with little_memory(), pytest.raises(FormatError, match=r"floats\.zstd|conv\.bias"):
        unpack(data)


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(100), claims(1 << 40), claims(SIZE), SQUEEZED["floats.zstd"][:-1]]
)
def test_compressed_floats_that_are_no_frame(content: bytes) -> None:
    with little_memory(), pytest.raises(FormatError, match=r"floats\.zstd"):
        unpack(signed({**SQUEEZED, "floats.zstd": content}, version=3))


def test_every_flipped_bit_of_compressed_floats_is_noticed_or_changes_nothing() -> None:
    frame, good = (
        SQUEEZED["floats.zstd"],
        [value.tolist() for _, value in unpack(signed(SQUEEZED, version=3))[1]],
    )
    assert good[2] == [0.0] * 64
    named = []
    for place in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[place // 8] ^= 1 << place % 8
        try:
            _, floats, _ = unpack(signed({**SQUEEZED, "floats.zstd": bytes(flipped)}, version=3))
        except FormatError as error:
            named.append(re.match(r"floats\.zstd|conv\.bias|norm\.count|norm\.scale", str(error)))
        else:
            assert [value.tolist() for _, value in floats] == good
    assert all(named)
    assert len(named) > 7 * len(frame)


def test_floats_are_in_the_string_of_the_files_version() -> None:
    with pytest.raises(FormatError, match=r"floats\.zstd: missing"):
        unpack(signed(strings_of(DATA), version=3))
    with pytest.raises(FormatError, match="floats: truncated"):
        unpack(signed(SQUEEZED, version=2))


def test_exponents_of_a_layer_without_weights() -> None:
    def edit(manifest: Any, strings: Strings) -> None:
        manifest["layers"].append(
            {
                **manifest["layers"][0],
                "name": "x",
                "names": ["x"],
                "shape": [1 << 23, 0],
                "exponents": 1 << 23,
            }
        )
        strings["exponents"] = squeeze(bytes(14 + (2 << 23)))

    data = forged(edit)
    assert len(data) < 1 << 13
    with little_memory(4 << 20), pytest.raises(FormatError):
        unpack(data)


def test_a_manifest_of_many_empty_lists() -> None:
    data = signed(strings_of(DATA), b"[" + b"[]," * (1 << 17) + b"[]]")
    assert len(data) < 1 << 11
    with little_memory(4 << 20), pytest.raises(FormatError):
        unpack(data)


@given(st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_any_forged_row_is_refused_or_usable(data: st.DataObject) -> None:
    """Several fields at a time, each with a value that would be legal somewhere."""
    fields = {
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 20, 24, 40]), max_size=4),
        "bits": st.integers(2, 8),
        "exponents": st.sampled_from([0, 1, 2, 4]),
        "crc32": st.sampled_from([row["crc32"] for row in manifest_of(strings_of(DATA))["layers"]]),
    }
    edits = {key: data.draw(values) for key, values in fields.items() if data.draw(st.booleans())}
    place = data.draw(st.integers(0, 2))
    try:
        layers, floats, _ = unpack(forged(lambda m, _: m["layers"][place].update(edits)))
    except FormatError:
        return
    assert usable(layers, floats)


STEP = (("conv.input_quantizer.step",), torch.tensor(0.25))
ROW = {"name": "conv", "bits": 4, "signed": False, "power_of_two": True}


def rounded(row: Any, step: torch.Tensor = STEP[1]) -> bytes:
    """A file whose manifest says this of the inputs that are quantized."""
    strings = strings_of(to_file(*pack(LAYERS, [*FLOATS, (STEP[0], step)])))
    return signed(strings, json.dumps({**manifest_of(strings), "activations": row}).encode())


def test_quantized_inputs_are_read() -> None:
    assert unpack(rounded([ROW]))[2] == {"conv": InputFormat(4, signed=False, power_of_two=True)}
    assert unpack(DATA)[2] == {}


@pytest.mark.parametrize(
    "row",
    [
        {}, [{}], [[]], 1, None, [None], [ROW, ROW],
        [{**ROW, "bits": 1}], [{**ROW, "bits": 9}], [{**ROW, "bits": "4"}], [{**ROW, "bits": 4.5}],
        [{**ROW, "signed": 0}], [{**ROW, "power_of_two": None}], [{**ROW, "name": "fc"}],
        [{**ROW, "name": 3}], [{k: v for k, v in ROW.items() if k != "signed"}],
    ],
)  # fmt: skip
def test_junk_in_the_row_of_an_input(row: Any) -> None:
    with pytest.raises(
        FormatError, match=r"^manifest: .*activations|^manifest: \w+: expected one row"
    ) as caught:
        unpack(rounded(row))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [0.0, -0.25, math.nan, math.inf])
def test_steps_that_are_none(step: float) -> None:
    with pytest.raises(FormatError, match=r"^conv: expected a positive scale"):
        unpack(rounded([ROW], torch.tensor(step)))


@pytest.mark.parametrize("step", [torch.tensor([0.25]), torch.tensor(1)])
def test_steps_of_another_form(step: torch.Tensor) -> None:
    with pytest.raises(
        FormatError,
        match=r"conv: expected one row, and conv\.input_quantizer.step among the floats, a scalar",
    ):
        unpack(rounded([ROW], step))


# Groups of inputs, and the codebooks of version 4.

GROUPED = to_file(
    *pack(
        {
            "fc": Quantized(
                ("fc.weight",),
                codebook_at("fp4", torch.tensor([[0, -1], [2, 0]]), 4),
                torch.arange(14, dtype=torch.uint8).view(2, 7),
            )
        },
        [],
    )
)


def forged_4(edit: Any, version: int = 4) -> bytes:
    """The file with another manifest or other strings, and checksums that belong to them."""
    strings = strings_of(GROUPED)
    manifest = manifest_of(strings)
    edit(manifest["layers"][0], strings)
    return signed(strings, json.dumps(manifest).encode(), version)


def test_groups_are_read() -> None:
    layers, *_ = unpack(forged_4(lambda row, strings: None))
    assert layers["fc"].codebook.max_exponent.tolist() == [[0, -1], [2, 0]]
    assert layers["fc"].codebook.group_size == 4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r, s: r.update(group_size=2), r"fc, .*: expected 8 exponents, got 4"),
        (lambda r, s: r.update(group_size=0), r"fc, .*: expected 0 or 2 exponents, got 4"),
        (lambda r, s: r.update(group_size=-4), r"group_size"),
        (lambda r, s: r.update(group_size=1.5), r"group_size"),
        (lambda r, s: r.update(exponents=2), r"fc, .*: expected 4 exponents, got 2"),
        (lambda r, s: r.update(bits=5), r"fc, .*: expected 4, 6, 8 bits on the grid fp, got 5"),
        (lambda r, s: r.update(grid="int"), r"fc, .*: expected 8 bits on the grid int, got 4"),
        (lambda r, s: s.pop("exponents.groups"), r"^exponents\.groups: missing in the file"),
        (lambda r, s: s.update({"exponents.groups": b"x"}), r"^exponents\.groups: cut short"),
    ],
)
def test_groups_that_do_not_fit_are_refused(edit: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(forged_4(edit))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_versions_have_neither_groups_nor_these_codebooks(version: int) -> None:
    with pytest.raises(
        FormatError, match=f"^fc: expected no groups in a file of version {version}"
    ):
        unpack(forged_4(lambda row, strings: None, version))
    plain = lambda row, strings: row.update(group_size=0, exponents=2)  # noqa: E731
    with pytest.raises(FormatError, match=f"^fc: expected the grid powers.* version {version}"):
        unpack(forged_4(plain, version))


def test_exponents_of_groups_stay_within_their_range() -> None:
    def lowered(row: Any, strings: Strings) -> None:
        exponents = struct.pack("<2h", -126, 0)
        strings["exponents"] = squeeze(exponents)
        codes = bytes(range(14))
        row["crc32"] = zlib.crc32(codes + struct.pack("<4h", -126, -127, 0, -2))

    with pytest.raises(FormatError, match=r"^fc: expected exponents from -126 to 127, got -127"):
        unpack(forged_4(lowered))
