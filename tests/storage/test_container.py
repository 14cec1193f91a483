"""The file's byte strings: round trips, and a second reader written from docs/format.md alone."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from octavo.activations.quantizer import InputFormat, scale_key
from octavo.errors import FormatError
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.registry import codebook_at
from octavo.formats.width import BITS, Apot, Width
from octavo.network.layers import find_layers
from octavo.storage.container import VERSION, Floats, pack, to_file, unpack
from octavo.storage.manifest import DTYPES
from octavo.storage.quantized import Quantized

# The second reader. It knows docs/format.md, and nothing of octavo.

NUMPY = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "?",
}


def byte_strings(data: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    octavo = json.loads(header.pop("__metadata__")["octavo"])
    strings = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        assert (entry["dtype"], entry["shape"]) == ("U8", [end - start])
        strings[name] = data[8 + size + start : 8 + size + end]
    return strings, octavo


def expand(frame: bytes) -> bytes:
    assert zstandard.frame_content_size(frame) >= 0  # it states its size
    return zstandard.ZstdDecompressor().decompress(frame)


def coded(data: bytes, level_count: int) -> tuple[int, list[int]]:
    """The codes of a stream, and their bits."""
    assert int.from_bytes(data[:4], "little") == zlib.crc32(data[4:])
    bits, count, rounds = data[4], int.from_bytes(data[5:13], "little"), data[13]
    dropped, frame = list(data[14 : 14 + rounds]), iter(expand(data[14 + rounds :]))

    def ungroup(size: int, levels: int) -> list[int]:
        k = max(k for k in range(1, 9) if levels**k <= 256)
        symbols = []
        for _ in range(-(-size // k)):
            byte = next(frame)
            for _ in range(k):
                symbols.append(byte % levels)
                byte //= levels
        assert not any(symbols[size:])
        return symbols[:size]

    worked_on, levels = [count], [level_count]
    for _ in range(rounds):
        worked_on.append(-(-worked_on[-1] // 8))
        levels.append(256)
    symbols = ungroup(worked_on[-1], levels[-1])
    for n in range(rounds - 1, -1, -1):
        mask = [byte >> place & 1 for byte in symbols for place in range(7, -1, -1)][: worked_on[n]]
        others = iter(ungroup(sum(mask), levels[n] - 1))
        symbols = [
            (s if (s := next(others)) < dropped[n] else s + 1) if bit else dropped[n]
            for bit in mask
        ]
    assert next(frame, None) is None
    return bits, symbols


def unit_levels(grid: str, bits: int) -> list[float]:
    """The levels for n1 = 0, in the order of their codes."""
    if grid == "apot":
        return apot_levels(bits)
    if grid == "powers":
        powers = [2.0 ** (-n) for n in range(2 ** (bits - 2) - 1, -1, -1)]
        return [-p for p in powers[::-1]] + [0.0] + powers
    if grid == "int":
        return [n / 2 ** (bits - 2) for n in range(1 - 2 ** (bits - 1), 2 ** (bits - 1))]
    m = {4: 1, 6: 3, 8: 3}[bits]
    found = [
        (code % 2**m + (2**m if code >> m else 0)) * 2.0 ** max(0, (code >> m) - 1)
        for code in range(1, 2 ** (bits - 1) - (bits == 8))
    ]
    unit = 2 ** math.floor(math.log2(found[-1]))
    return [-n / unit for n in found[::-1]] + [0.0] + [n / unit for n in found]


def apot_levels(bits: int) -> list[float]:
    """The levels of the grid apot for n1 = 0, in the order of their codes."""
    found = []
    for n in range(1, 1 << 17):
        j = n.bit_length() - 1
        rest = n - (1 << j)
        two = rest.bit_count() <= 1 or ((1 << j) - rest).bit_count() == 1
        if two and rest % (1 << max(0, j - (bits - 3))) == 0:
            found.append(n)
    found = found[: 2 ** (bits - 1) - 1]
    unit = 1 << (found[-1].bit_length() - 1)
    positive = [n / unit for n in found]
    return [-value for value in positive[::-1]] + [0.0] + positive


def read(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The quantized weights and the other tensors, by their names in the state dict; bfloat16 as
    float32."""
    strings, octavo = byte_strings(data)
    new = any(name.startswith(("codes.fp", "codes.int", "exponents.groups")) for name in strings)
    old = 1 + any(name.startswith("codes.apot") for name in strings)
    assert octavo["version"] >= (4 if new else 3 if "floats.zstd" in strings else old)
    assert octavo["manifest_crc32"] == zlib.crc32(strings["manifest"])
    manifest = json.loads(expand(strings["manifest"]))
    streams = {}
    for name in strings:
        if name.startswith("codes."):
            grid = name.removeprefix("codes.").rstrip("0123456789") or "powers"
            bits, symbols = coded(strings[name], len(unit_levels(grid, int(name[-1]))))
            assert name == f"codes.{'' if grid == 'powers' else grid}{bits}"
            streams[name] = symbols
    drops = coded(strings["exponents.groups"], 255)[1] if "exponents.groups" in strings else []
    exponents = np.frombuffer(expand(strings["exponents"]), "<i2").tolist()
    floats = (
        expand(strings["floats.zstd"]) if "floats.zstd" in strings else strings.get("floats", b"")
    )
    weights: dict[str, np.ndarray] = {}
    for row in manifest["layers"]:
        count, size = math.prod(row["shape"]), row.get("group_size", 0)
        columns = count // row["shape"][0]
        channels = row["shape"][0] if size else max(1, row["exponents"])
        grid = row.get("grid", "powers")
        stream = f"codes.{'' if grid == 'powers' else grid}{row['bits']}"
        codes, streams[stream] = streams[stream][:count], streams[stream][count:]
        unit = unit_levels(grid, row["bits"])
        tops, exponents = exponents[:channels], exponents[channels:]
        of_place = [place * channels // count for place in range(count)]
        if size:
            groups = -(-columns // size)
            assert row["exponents"] == channels * groups
            below, drops = drops[: channels * groups], drops[channels * groups :]
            tops = [tops[n // groups] - drop for n, drop in enumerate(below)]
            of_place = [p // columns * groups + p % columns // size for p in range(count)]
        assert row["crc32"] == zlib.crc32(bytes(codes) + np.array(tops, "<i2").tobytes())
        values = [math.ldexp(unit[code], tops[n]) for code, n in zip(codes, of_place, strict=True)]
        weight = np.array(values, np.float64).reshape(row["shape"])
        if groups := row["groups"]:
            outputs, inputs, *kernel = weight.shape
            weight = weight.reshape(groups, outputs // groups, inputs, *kernel).swapaxes(1, 2)
            weight = weight.reshape(groups * inputs, outputs // groups, *kernel)
        weights |= dict.fromkeys(row["names"], weight)
    others: dict[str, np.ndarray] = {}
    for row in manifest["floats"]:
        half = row["dtype"] == "bfloat16"
        dtype = np.dtype("<u2" if half else NUMPY[row["dtype"]])
        raw, floats = (
            floats[: math.prod(row["shape"]) * dtype.itemsize],
            floats[math.prod(row["shape"]) * dtype.itemsize :],
        )
        assert row["crc32"] == zlib.crc32(raw)
        value = np.frombuffer(raw, dtype)
        value = (value.astype("<u4") << 16).view("<f4") if half else value
        others |= dict.fromkeys(row["names"], value.reshape(row["shape"]))
    assert not exponents
    assert not drops
    assert not floats
    assert not any(streams.values())
    return weights, others


# What is packed.


@st.composite
def quantized(draw: st.DrawFn, name: str) -> Quantized:
    width = draw(st.sampled_from([Width(b, name) for name, bits in BITS.items() for b in bits]))
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    divisors = (
        [0] + [g for g in range(1, shape[0] + 1) if shape[0] % g == 0] if len(shape) > 1 else [0]
    )
    size = draw(st.sampled_from([None, 0, 2, 3, 32]))  # None: one exponent for the tensor
    exponents = [] if size is None else [shape[0]]
    if size:
        exponents.append(-(-math.prod(shape[1:]) // size))
    lowest = -149 if width.codebook == "power_of_two" else -126
    count = math.prod(exponents)
    top = draw(st.lists(st.integers(lowest, 100 if size else 127), min_size=count, max_size=count))
    zero = width.level_count // 2
    share = draw(st.sampled_from([0, 0.5, 0.99]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = np.where(rng.random(shape) < share, zero, rng.integers(0, 2 * zero + 1, shape)).astype(
        np.uint8
    )
    names = (name, *(f"{name}.{n}" for n in range(draw(st.integers(0, 2)))))
    codebook = codebook_at(width, torch.tensor(top).reshape(exponents), size or 0)
    return Quantized(names, codebook, torch.from_numpy(codes), draw(st.sampled_from(divisors)))


@st.composite
def other(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    size = draw(st.sampled_from([2, 256]))  # of two values for each byte, it is worth compressing
    raw = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, size, (math.prod(shape), dtype.itemsize), np.uint8
    )
    if dtype == torch.bool:
        raw &= 1
    return torch.from_numpy(raw).reshape(-1).view(dtype).reshape(shape)


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, Quantized], Floats]:
    layers = {f"layer{n}": draw(quantized(f"w{n}")) for n in range(draw(st.integers(1, 4)))}
    floats = [
        ((f"f{n}", f"g{n}")[: draw(st.integers(1, 2))], draw(other()))
        for n in range(draw(st.integers(0, 4)))
    ]
    return layers, floats


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@given(networks())
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_what_is_packed_comes_back(network: tuple[dict[str, Quantized], Floats]) -> None:
    layers, floats = network
    found, others, _ = unpack(to_file(*pack(layers, floats)))
    assert list(found) == list(layers)
    for name, layer in layers.items():
        back = found[name]
        assert (back.names, back.groups, back.codebook.width) == (
            layer.names,
            layer.groups,
            layer.codebook.width,
        )
        assert torch.equal(back.codes, layer.codes)
        assert back.codes.dtype == torch.uint8
        assert back.codebook.group_size == layer.codebook.group_size
        assert torch.equal(back.codebook.max_exponent, layer.codebook.max_exponent)
        assert raw(back.weight()) == raw(layer.weight())
    assert [names for names, _ in others] == [names for names, _ in floats]
    for (_, value), (_, expected) in zip(others, floats, strict=True):
        assert (value.dtype, value.shape, raw(value)) == (
            expected.dtype,
            expected.shape,
            raw(expected),
        )


@given(networks())
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_another_reader_reads_the_same(network: tuple[dict[str, Quantized], Floats]) -> None:
    layers, floats = network
    weights, others = read(to_file(*pack(layers, floats)))
    expected = {name: layer.weight() for layer in layers.values() for name in layer.names}
    assert list(weights) == list(expected)
    for name, weight in weights.items():
        assert raw(torch.from_numpy(weight.astype(np.float32))) == raw(expected[name])
    plain = {name: value for names, value in floats for name in names}
    assert list(others) == list(plain)
    for name, value in others.items():
        same = plain[name].float() if plain[name].dtype == torch.bfloat16 else plain[name]
        assert value.shape == same.shape
        assert np.array_equal(value, same.numpy(), equal_nan=value.dtype.kind == "f")


def test_another_reader_reads_the_golden_file_of_version_2() -> None:
    """Files that exist must stay readable: never change it, nor what it holds."""
    data = (Path(__file__).parent / "data" / "golden-v2.safetensors").read_bytes()
    layers, *_ = unpack(data)
    weights, _ = read(data)
    assert {name: layer.codebook.width for name, layer in layers.items()} == {
        "a": Apot(5),
        "b": 3,
        "c": Apot(6),
        "d": Apot(8),
    }
    assert weights["a.weight"].tolist() == [
        [v * 2.0**-6 for v in (-28, -24, -7, 0, 1)],
        [v * 2.0**-1 for v in (28, 12, 3, 0, -5)],
    ]
    assert weights["b.weight"].tolist() == [0.25, -0.5]
    assert weights["c.weight"].tolist() == [15 / 16, -120 / 16, 0.0]
    assert weights["d.weight"].tolist() == [-49152.0, 3.0, 1088.0]
    for name, layer in layers.items():
        assert weights[f"{name}.weight"].tolist() == layer.weight().tolist()


def test_another_reader_reads_the_golden_file() -> None:
    data = (Path(__file__).parent / "data" / "golden-v1.safetensors").read_bytes()
    layers, floats, _ = unpack(data)
    weights, others = read(data)
    assert [(name, weight.tolist()) for name, weight in weights.items()] == [
        (name, layer.weight().tolist()) for layer in layers.values() for name in layer.names
    ]
    assert [(name, value.tolist()) for name, value in others.items()] == [
        (n, v.tolist()) for names, v in floats for n in names
    ]
    strings, _ = byte_strings(data)
    assert strings["codes.5"][13] > 0  # the file has rounds in it


def test_another_reader_reads_the_golden_file_of_version_3() -> None:
    """Files that exist must stay readable: never change it, nor what it holds."""
    data = (Path(__file__).parent / "data" / "golden-v3.safetensors").read_bytes()
    strings, octavo = byte_strings(data)
    assert octavo["version"] == 3
    assert "floats" not in strings
    weights, others = read(data)
    _, floats, _ = unpack(data)
    assert weights["a.weight"].tolist() == [[0.25, -0.125, 0.0], [2.0, 0.0, -2.0]]
    assert others["a.bias"].tolist() == [n / 8 for n in range(32)]
    assert others["scale"].tolist() == 0.3330078125
    assert {names[0]: value.tolist() for names, value in floats} == {
        name: value.tolist() for name, value in others.items()
    }


def test_another_reader_reads_the_golden_file_of_version_4() -> None:
    """Files that exist must stay readable: never change it, nor what it holds."""
    data = (Path(__file__).parent / "data" / "golden-v4-codebooks.safetensors").read_bytes()
    _, octavo = byte_strings(data)
    assert octavo["version"] == 4
    layers, *_ = unpack(data)
    weights, _ = read(data)
    assert {name: str(layer.codebook.width) for name, layer in layers.items()} == GOLDEN_4
    assert weights["a.weight"].tolist() == [[6.0, -3.0, 0.375], [0.5, 0.0, -1.5]]
    assert weights["b.weight"].tolist() == [7.5, -0.125]
    assert weights["c.weight"].tolist() == [448.0, 2.0**-9]
    assert weights["d.weight"].tolist() == [-127.0, 1.0]
    assert weights["e.weight"].tolist() == [[0.25, 0.125, -2.0]]
    for name, layer in layers.items():
        assert weights[f"{name}.weight"].tolist() == layer.weight().tolist()


GOLDEN_4 = {"a": "fp4", "b": "fp6", "c": "fp8", "d": "int8", "e": "3"}


def network() -> tuple[dict[str, Quantized], Floats]:
    draw = torch.Generator().manual_seed(0)
    layers = {
        f"layer{n}": Quantized(
            (f"layer{n}.weight",),
            PowerOfTwo(bits, torch.full((40,), -n)),
            torch.randint(0, 2 ** (bits - 1) + 1, (40, 25), generator=draw, dtype=torch.uint8),
        )
        for n, bits in enumerate([3, 5, 3, 2])
    }
    return layers, [(("bias",), torch.arange(10.0))]


def test_the_file_is_a_safetensors_file() -> None:
    data = to_file(*pack(*network()))
    tensors = safetensors.deserialize(data)
    assert {name for name, _ in tensors} == {
        "manifest",
        "codes.2",
        "codes.3",
        "codes.5",
        "exponents",
        "floats",
    }
    assert {(entry["dtype"], len(entry["shape"])) for _, entry in tensors} == {("U8", 1)}
    strings, octavo = byte_strings(data)
    assert octavo == {"version": 1, "manifest_crc32": zlib.crc32(strings["manifest"])}
    assert VERSION == 4


def test_byte_strings_that_would_be_empty_are_absent() -> None:
    layers, _ = network()
    strings, _ = byte_strings(to_file(*pack(layers, [])))
    assert "floats" not in strings
    assert unpack(to_file(*pack(layers, [])))[1] == []


def test_floats_are_compressed_where_that_pays_and_the_file_is_of_version_3() -> None:
    layers, _ = network()
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(3000, generator=draw)
    for value, version in [
        (noise, 1),
        ((1 + noise / 8).half(), 3),
        (torch.zeros(3000), 3),
        (torch.zeros(0), 1),
    ]:
        data = to_file(*pack(layers, [(("bias",), value)]))
        strings, octavo = byte_strings(data)
        assert octavo["version"] == version
        assert ("floats.zstd" in strings, "floats" in strings) == (
            version == 3,
            version == 1 and value.numel() > 0,
        )
        assert len(strings.get("floats.zstd", b"")) < 0.9 * value.nbytes + (version == 1)
        ((_, back),) = unpack(data)[1]
        assert raw(back) == raw(value)


def test_the_same_network_makes_the_same_file() -> None:
    assert to_file(*pack(*network())) == to_file(*pack(*network()))


def test_all_that_is_not_codes_is_small() -> None:
    data = to_file(*pack(*network()))
    ideal = sum(1000 * math.log2(2 ** (bits - 1) + 1) / 8 for bits in (3, 5, 3, 2))
    assert len(data) < 1.02 * ideal + 4 * 10 + 2000


def test_a_manifest_that_compresses_well_is_read_all_the_same() -> None:
    prefix = ".".join(["a_rather_long_name_of_a_module"] * 5)
    floats: Floats = [
        ((f"{prefix}.{n}.num_batches_tracked",), torch.tensor(0)) for n in range(1500)
    ]
    book, codes = PowerOfTwo(3, torch.tensor(0)), torch.full((2, 2), 2, dtype=torch.uint8)
    layers = {
        f"{prefix}.{n}": Quantized((f"{prefix}.{n}.weight",), book, codes) for n in range(1500)
    }
    data = to_file(*pack(layers, floats))
    assert len(data) < 40_000
    found, others, _ = unpack(data)
    assert (list(found), [names for names, _ in others]) == (
        list(layers),
        [names for names, _ in floats],
    )


def test_layouts_of_memory_do_not_matter() -> None:
    codes = torch.randint(0, 5, (4, 6, 3, 3), dtype=torch.uint8)
    value = torch.randn(4, 6)
    files = [
        to_file(
            *pack({"a": Quantized(("a.weight",), PowerOfTwo(3, torch.tensor(0)), c)}, [(("b",), v)])
        )
        for c, v in (
            (codes, value),
            (codes.contiguous(memory_format=torch.channels_last), value.T.contiguous().T),
            (codes.clone().requires_grad_(False), nn.Parameter(value)),
        )
    ]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_transposed_convolution_gets_its_own_layout_back(groups: int) -> None:
    module = nn.ConvTranspose2d(4, 8, 3, groups=groups)
    (layer,) = find_layers(nn.ModuleDict({"up": module}))[0]
    codes = torch.full((8, 4 // groups, 3, 3), 2, dtype=torch.uint8)
    tops = torch.arange(8)
    packed = Quantized.of(layer, PowerOfTwo(2, tops), codes)
    assert (packed.names, packed.groups) == (("up.weight",), groups)
    weight = packed.weight()
    assert weight.shape == module.weight.shape
    outputs = 8 // groups
    for group in range(groups):
        for output in range(outputs):
            block = weight[group * 4 // groups : (group + 1) * 4 // groups, output]
            assert block.unique().tolist() == [2.0 ** (group * outputs + output)]


def test_a_quantized_layer_takes_the_names_of_its_tied_places() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    (layer,) = find_layers(model)[0]
    packed = Quantized.of(
        layer, PowerOfTwo(3, torch.tensor(1)), torch.zeros(5, 3, dtype=torch.uint8)
    )
    assert packed.names == ("0.weight", "1.weight")
    assert packed.weight().unique().tolist() == [-2.0]


def test_types_are_those_of_the_format() -> None:
    assert set(DTYPES) == {*NUMPY, "bfloat16"}
    assert all(str(dtype) == f"torch.{name}" for name, dtype in DTYPES.items())


@pytest.mark.parametrize("version", [5, 1000, 1.5, "1", None, [1], {}, 0, -1])
def test_other_versions_are_refused(version: Any) -> None:
    data = to_file(*pack(*network()))
    strings, octavo = byte_strings(data)
    tensors = {
        name: torch.frombuffer(bytearray(blob), dtype=torch.uint8) for name, blob in strings.items()
    }
    head = json.dumps({**octavo, "version": version})
    with pytest.raises(FormatError, match="version"):
        unpack(safetensors.torch.save(tensors, {"octavo": head}))


@pytest.mark.parametrize("scale", [0.0, -0.5, math.inf, math.nan])
def test_the_scale_of_inputs_is_positive_and_finite(scale: float) -> None:
    floats = [((scale_key("fc"),), torch.tensor(scale))]
    data = to_file(*pack({}, floats, {"fc": InputFormat(4, True, False)}))
    with pytest.raises(FormatError, match=r"^fc: expected a positive scale"):
        unpack(data)


def test_older_readers_find_no_key_that_they_do_not_know() -> None:
    strings, head = byte_strings(to_file(*pack(*network())))
    manifest = json.loads(expand(strings["manifest"]))
    assert head["version"] == 1
    assert set(manifest) == {"layers", "floats"}
    known = {"name", "names", "shape", "bits", "groups", "exponents", "crc32"}
    assert all(set(row) == known for row in manifest["layers"])


@pytest.mark.parametrize(("width", "needed"), [(Apot(5), 2), ("fp4", 4)])
def test_codes_that_readers_of_an_older_version_would_misread_are_refused(
    width: Any, needed: int
) -> None:
    codebook = codebook_at(width, torch.zeros(2, dtype=torch.int32))
    layer = Quantized(("fc.weight",), codebook, torch.zeros(2, 3, dtype=torch.uint8))
    blobs, version = pack({"fc": layer}, [])
    assert version == needed
    for lower in range(1, needed):
        with pytest.raises(FormatError, match=f"^fc: .* in a file of version {lower}"):
            unpack(to_file(blobs, lower))
