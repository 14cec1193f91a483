"""codes <-> bytes: lossless, near the entropy, and a FormatError for whatever else may come."""

import math
import struct
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.errors import FormatError, PlanError
from octavo.formats.width import Apot
from octavo.storage.coding.grouped import decode_codes, encode_codes, entropy_bytes

BITS = range(2, 9)
ZERO_SHARES = (0.0, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999)

# 5000 codes of 5 bits, in two rounds. Files that exist must stay readable: never change this.
GOLDEN_CODES = [n // 300 if n % 300 == 7 else 8 for n in range(5000)]
GOLDEN = (
    "ec76450505881300000000000002080028b52ffd2067640100f8800000000200000000100000000040080100200400801000000000800000"
    "0006040500018b297008d89875800000000f000f000f000f0f000f000f000f004000001032547698badcfe010000"
)


def quantized(weights: np.ndarray, bits: int) -> torch.Tensor:
    """Codes of the nearest powers of two, or of zero; the largest power is what suits weights
    around 1."""
    exponents, top = 2 ** (bits - 2), 0 if bits < 4 else 1
    rank = np.floor(np.log2(np.abs(weights) / 1.5)) + 1 - top + exponents
    return torch.from_numpy(
        (exponents + np.sign(weights) * rank.clip(0, exponents)).astype(np.uint8)
    )


def sparse(size: int, bits: int, zeros: float, seed: int = 0) -> torch.Tensor:
    """Codes of Gaussian weights, of which about the share ``zeros`` was set to zero."""
    rng = np.random.default_rng(seed)
    codes = quantized(rng.standard_normal(size), bits)
    return codes.masked_fill_(torch.from_numpy(rng.random(size) < zeros), 2 ** (bits - 2))


def order_0(codes: torch.Tensor) -> float:
    """Entropy in bytes, by the book."""
    counts = Counter(codes.flatten().tolist())
    return sum(n * math.log2(codes.numel() / n) for n in counts.values()) / 8


def forge(bits: int, count: int, dropped: bytes, frame: bytes, rounds: int | None = None) -> bytes:
    """Data whose checksum and fields are right, whatever the rest."""
    content = (
        struct.pack("<BQB", bits, count, len(dropped) if rounds is None else rounds)
        + dropped
        + frame
    )
    return struct.pack("<I", zlib.crc32(content)) + content


def frame(content: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(content)


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    bits = draw(st.sampled_from(BITS))
    shape = draw(st.lists(st.integers(0, 40), max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    common, levels = draw(st.integers(0, 2 ** (bits - 1))), 2 ** (bits - 1) + 1
    frequent = rng.random(shape) < draw(st.sampled_from(ZERO_SHARES))
    return torch.tensor(
        np.where(frequent, common, rng.integers(0, levels, shape)), dtype=torch.uint8
    ), bits


@given(codes_and_bits())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip_whatever_the_shape_and_the_common_code(example):
    codes, bits = example
    decoded = decode_codes(encode_codes(codes, bits), codes.numel(), bits)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (codes.numel(),)
    assert torch.equal(decoded, codes.flatten())


@pytest.mark.parametrize("bits", BITS)
def test_round_trip_across_many_zstandard_blocks(bits):
    for zeros in ZERO_SHARES:
        codes = sparse(600_001, bits, zeros)
        assert torch.equal(decode_codes(encode_codes(codes, bits), codes.numel(), bits), codes)


def test_input_is_left_alone_and_may_be_strided():
    codes = sparse(2000, 5, 0.9).view(40, 50)
    before = codes.clone()
    assert torch.equal(decode_codes(encode_codes(codes.T, 5), 2000, 5), codes.T.flatten())
    assert torch.equal(codes, before)


def test_same_codes_same_bytes():
    assert encode_codes(sparse(3000, 4, 0.7), 4) == encode_codes(sparse(3000, 4, 0.7), 4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zeros", ZERO_SHARES)
def test_size_is_near_the_entropy(bits, zeros):
    codes = sparse(400_000, bits, zeros)
    allowed = 1.02 if zeros < 0.9 else 1.03
    assert len(encode_codes(codes, bits)) <= allowed * order_0(codes) + 200


@pytest.mark.parametrize("bits", BITS)
def test_size_is_near_the_entropy_where_layers_and_channels_differ(bits):
    rng = np.random.default_rng(1)
    scales = np.exp(rng.standard_normal((300, 1))) * np.repeat([0.1, 1, 3], 100)[:, None]
    codes = quantized(rng.laplace(size=(300, 1000)) * scales, bits)
    assert len(encode_codes(codes, bits)) <= 1.02 * order_0(codes) + 200


@pytest.mark.parametrize("bits", BITS)
def test_size_is_near_the_entropy_of_codes_of_one_sign(bits):
    codes = sparse(400_000, bits, 0.2)
    codes = torch.maximum(
        codes, 2**bits // 2 - codes
    )  # code c and its mirror image become the larger one
    assert len(encode_codes(codes, bits)) <= 1.03 * order_0(codes) + 200


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("size", "extra"), [(0, 23), (1, 27), (30, 50), (100, 70), (1000, 100), (10_000, 170)]
)
def test_few_codes_take_few_bytes_more(bits, size, extra):
    for zeros in ZERO_SHARES:
        codes = sparse(size, bits, zeros)
        assert len(encode_codes(codes, bits)) <= 1.02 * order_0(codes) + extra


def test_equal_codes_take_next_to_nothing():
    assert len(encode_codes(torch.full((1_000_000,), 64, dtype=torch.uint8), 8)) < 60


def test_entropy():
    assert entropy_bytes(torch.tensor([0, 1, 2, 3] * 4, dtype=torch.uint8), 4) == 4  # two bits each
    assert entropy_bytes(torch.full((5, 5), 2, dtype=torch.uint8), 3) == 0
    assert entropy_bytes(torch.empty(0, dtype=torch.uint8), 3) == 0
    codes = sparse(5000, 6, 0.3)
    assert entropy_bytes(codes.view(50, 100), 6) == pytest.approx(order_0(codes), rel=1e-12)


def test_golden_bytes_stay_readable():
    assert decode_codes(bytes.fromhex(GOLDEN), 5000, 5).tolist() == GOLDEN_CODES


def read_by_the_book(data: bytes) -> list[int]:
    """A second reader, written from the format's description, one symbol at a time."""
    bits, count, rounds = struct.unpack_from("<BQB", data, 4)
    packed = iter(zstandard.ZstdDecompressor().decompress(data[14 + rounds :]))

    def stream(size: int, levels: int) -> list[int]:
        per_byte = int(math.log(256.5, levels))
        grouped = [next(packed) for _ in range(math.ceil(size / per_byte))]
        return [byte // levels**place % levels for byte in grouped for place in range(per_byte)][
            :size
        ]

    sizes, levels = [count], [2 ** (bits - 1) + 1]
    for _ in range(rounds):
        sizes.append(math.ceil(sizes[-1] / 8))
        levels.append(256)
    symbols = stream(sizes[rounds], levels[rounds])
    for n in reversed(range(rounds)):
        flags = "".join(f"{byte:08b}" for byte in symbols)[: sizes[n]]
        others = iter(stream(flags.count("1"), levels[n] - 1))
        named = [symbol for symbol in range(levels[n]) if symbol != data[14 + n]]
        symbols = [named[next(others)] if flag == "1" else data[14 + n] for flag in flags]
    assert next(packed, None) is None
    return symbols


@pytest.mark.parametrize("bits", BITS)
def test_format_is_as_described(bits):
    rounds = set()
    for zeros in ZERO_SHARES:
        codes = sparse(5000, bits, zeros)
        data = encode_codes(codes, bits)
        assert zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")
        assert read_by_the_book(data) == codes.tolist()
        rounds.add(data[13])
    assert len(rounds) >= 3  # the cases above do not all take the same path


@pytest.mark.parametrize("zeros", [0.3, 0.99])
def test_every_flipped_bit_and_every_cut_is_noticed(zeros):
    codes = sparse(600, 4, zeros)
    data = encode_codes(codes, 4)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="damaged"):
            decode_codes(bytes(flipped), 600, 4)
    for length in range(len(data)):
        with pytest.raises(FormatError, match="cut short"):
            decode_codes(data[:length], 600, 4)
    with pytest.raises(FormatError, match="damaged"):
        decode_codes(data + b"\0", 600, 4)


@pytest.mark.parametrize("count", [0, 599, 601, 605, -1, 2**70])
def test_another_count_is_noticed(count):
    with pytest.raises(FormatError, match=f"expected {count} codes of 4 bits, found 600 of 4"):
        decode_codes(encode_codes(sparse(600, 4, 0.9), 4), count, 4)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7, 8])
def test_other_bits_are_noticed(bits):
    with pytest.raises(FormatError, match=f"expected 600 codes of {bits} bits, found 600 of 4"):
        decode_codes(encode_codes(sparse(600, 4, 0.9), 4), 600, bits)


@pytest.mark.parametrize("bits", [1, 9, 3.0])
def test_bits_of_no_width_are_refused(bits):
    with pytest.raises(PlanError, match=f"expected 2 to 8, .*got {bits}"):
        decode_codes(encode_codes(sparse(600, 4, 0.9), 4), 600, bits)


@given(st.binary(max_size=200), st.integers(0, 1000), st.sampled_from(BITS))
def test_garbage_is_noticed(data, count, bits):
    with pytest.raises(FormatError):
        decode_codes(data, count, bits)


FORGERIES = {
    "no frame": (forge(2, 5, b"", b""), 5, 2, "broken zstandard frame"),
    "not a frame": (forge(2, 5, b"", b"no frame at all"), 5, 2, "broken zstandard frame"),
    "cut frame": (
        forge(2, 900, b"", frame(bytes(range(180)))[:-1]),
        900,
        2,
        "broken zstandard frame",
    ),
    "two frames": (forge(2, 5, b"", 2 * frame(b"\0")), 5, 2, "broken zstandard frame"),
    "no size": (forge(2, 5, b"", frame(b"\0", sized=False)), 5, 2, "at most 5 bytes"),
    "bomb": (forge(2, 5, b"", frame(bytes(1 << 26))), 5, 2, "asks for 67108864"),
    "bomb in rounds": (forge(2, 5, b"\1" * 200, frame(bytes(1 << 26))), 5, 2, "asks for 67108864"),
    "too few": (forge(2, 6, b"", frame(b"\0")), 6, 2, "expected 2 bytes for 6 symbols, found 1"),
    "too many": (
        forge(2, 5, b"", frame(b"\0\0")),
        5,
        2,
        "nothing after the last code, found 1 bytes",
    ),
    "no such group": (forge(2, 5, b"", frame(b"\xf3")), 5, 2, "expected symbols below 3, found 3"),
    "no such code": (
        forge(5, 2, b"", frame(b"\0\x11")),
        2,
        5,
        "expected symbols below 17, found 17",
    ),
    "no such dropped code": (
        forge(5, 8, b"\x11", frame(b"\0")),
        8,
        5,
        "expected codes below 17 at 5 bits, found 17",
    ),
    "too few others": (
        forge(5, 8, b"\x08", frame(b"\xff\0")),
        8,
        5,
        "expected 4 bytes for 8 symbols, found 1",
    ),
    "too many others": (forge(5, 8, b"\x08", frame(b"\xff\0\0\0\0\0")), 8, 5, "found 1 bytes"),
    "no such other": (
        forge(6, 8, b"\x08", frame(b"\x01\x20")),
        8,
        6,
        "expected symbols below 32, found 32",
    ),
    "rounds without end": (
        forge(5, 8, b"\x08" * 9, b"", rounds=255),
        8,
        5,
        "broken zstandard frame",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_refused_at_little_cost(name):
    data, count, bits, message = FORGERIES[name]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message):
            decode_codes(data, count, bits)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.data(), st.sampled_from(BITS), st.integers(0, 40), st.binary(max_size=3))
@settings(deadline=None)
def test_forged_content_is_refused_or_is_codes(data, bits, count, dropped):
    content = data.draw(
        st.lists(st.sampled_from([0, 1, 2, 9, 127, 255]), max_size=count).map(bytes)
    )
    try:
        codes = decode_codes(forge(bits, count, dropped, frame(content)), count, bits)
    except FormatError:
        return
    assert codes.shape == (count,)
    assert codes.dtype == torch.uint8
    assert all(code <= 2 ** (bits - 1) for code in codes.tolist())


@pytest.mark.parametrize("function", [encode_codes, entropy_bytes])
@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.tensor([1]), 3, "torch.uint8, got torch.int64"),
        (torch.tensor([1.0]), 3, "torch.uint8, got torch.float32"),
        (torch.tensor([5], dtype=torch.uint8), 3, "at most 4 at 3 bits, got 5"),
        (torch.tensor([0, 200], dtype=torch.uint8), 8, "at most 128 at 8 bits, got 200"),
        (torch.tensor([31], dtype=torch.uint8), Apot(5), "at most 30 at apot5 bits, got 31"),
        (torch.tensor([0], dtype=torch.uint8), 1, "expected 2 to 8, .* got 1"),
        (torch.tensor([0], dtype=torch.uint8), 9, "expected 2 to 8, .* got 9"),
        (torch.tensor([0], dtype=torch.uint8), 3.0, "expected 2 to 8, .* got 3.0"),
    ],
)
def test_bad_input_is_refused(function, codes, bits, message):
    with pytest.raises(ValueError, match=message):
        function(codes, bits)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("size", [0, 1, 7, 5000])
def test_sums_of_two_powers_have_codes_of_their_own_number(
    bits: int, zeros: float, size: int
) -> None:
    rng = np.random.default_rng(bits)
    drawn = np.where(
        rng.random(size) < zeros, 2 ** (bits - 1) - 1, rng.integers(0, 2**bits - 1, size)
    )
    codes = torch.from_numpy(drawn.astype(np.uint8))
    data = encode_codes(codes, Apot(bits))
    assert torch.equal(decode_codes(data, size, Apot(bits)), codes)
    assert data[4] == bits
    assert len(data) <= 200 + 1.02 * entropy_bytes(codes, Apot(bits)) or zeros == 0.99
    assert entropy_bytes(codes, Apot(bits)) == pytest.approx(order_0(codes) if size else 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 5, 6, 5 << 15, (5 << 15) + 1, 200_003])
def test_codes_survive_wherever_pairs_of_bytes_and_blocks_end(bits: int, count: int) -> None:
    codes = torch.randint(2 ** (bits - 1) + 1, (count,), dtype=torch.uint8)
    assert torch.equal(decode_codes(encode_codes(codes, bits), count, bits), codes)


def test_nothing_stands_behind_the_last_bit_of_a_mask() -> None:
    for last, good in ((0, True), (1, False), (64, False)):  # the mask of 9 codes takes 9 bits
        data = forge(3, 9, b"\2", frame(bytes([0, last])))
        if good:
            assert decode_codes(data, 9, 3).tolist() == [2] * 9
        else:
            with pytest.raises(FormatError, match="zeros after the last bit of a mask"):
                decode_codes(data, 9, 3)
