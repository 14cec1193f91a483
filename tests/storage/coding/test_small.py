"""The coder ``small``: nothing is lost, few bytes, a second reader in plain Python, and hostile
bytes."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.errors import FormatError
from octavo.storage.coding.grouped import encode_codes, entropy_bytes
from octavo.storage.coding.small import Run, decode_runs, encode_runs, frequencies

pytest.importorskip("constriction")

EIGHTHS = [round(2**24 * 2 ** (-k / 8)) for k in range(8)]


# The second reader. It knows docs/format.md, and nothing of octavo or constriction.


class Words:
    """The state of the coder, and the words that it has not read yet."""

    def __init__(self, data: bytes) -> None:
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.state = 0
        while self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def take(self, frequency: list[int]) -> int:
        low = self.state % 2**24
        start = 0
        for symbol, own in enumerate(frequency):
            if low < start + own:
                self.state = (self.state >> 24) * own + low - start
                if self.state < 1 << 32 and self.words:
                    self.state = self.state << 32 | self.words.pop()
                return symbol
            start += own
        raise AssertionError("frequencies do not add up")


def frequencies_of(kind: int, table: bytes, levels: int) -> list[int]:
    entries = list(table)
    if kind == 1:
        entries = entries[:0:-1] + entries
    weights = [0 if t == 255 else EIGHTHS[t % 8] >> (t // 8) for t in entries]
    room = 2**24 - levels
    scaled = [weight * room // sum(weights) for weight in weights]
    scaled[scaled.index(max(scaled))] += room - sum(scaled)
    return [one + 1 for one in scaled]


def read(data: bytes, runs: list[Run]) -> list[list[int]]:
    assert int.from_bytes(data[:4], "little") == zlib.crc32(data[4:])
    size = int.from_bytes(data[4:8], "little")
    heads = list(zstandard.ZstdDecompressor().decompress(data[8 : 8 + size]))

    def taken(count: int) -> list[int]:
        first = heads[:count]
        del heads[:count]
        return first

    parsed = []
    for run in runs:
        numbers = taken(2) if taken(1)[0] else None
        tables = []
        for _ in range(1 if numbers is None else 6):
            (kind,) = taken(1)
            table = bytes(taken({0: run.levels, 1: run.levels // 2 + 1, 2: 0}[kind]))
            tables.append(None if kind == 2 else frequencies_of(kind, table, run.levels))
        parsed.append((numbers, tables))
    assert not heads
    words = Words(data[8 + size :])
    found = []
    for run, (numbers, tables) in zip(runs, parsed, strict=True):
        if numbers is None:
            count = int(np.prod(run.shape))
            found.append([words.take(tables[0]) for _ in range(count)])  # type: ignore[arg-type]
        else:
            found.append(in_contexts(words, run, numbers, tables))
    assert words.state == 0
    assert not words.words
    return found


def in_contexts(words: Words, run: Run, numbers: list[int], tables: list[Any]) -> list[int]:
    near, active = numbers
    kernels = run.shape[0] * run.shape[1]
    positions = int(np.prod(run.shape[2:]))
    width = run.shape[-1]
    middle = run.levels // 2
    s = [[0] * positions for _ in range(kernels)]
    for t in range(positions):
        ahead = [(k[t - 1] if t % width else 0) + (k[t - width] if t >= width else 0) for k in s]
        busy = [16 * sum(map(abs, k[:t])) >= active * t for k in s]
        context = [
            (0 if p == 0 else 1 if abs(p) <= near else 2) + 3 * b
            for p, b in zip(ahead, busy, strict=True)
        ]
        for index in range(6):
            for kernel in range(kernels):
                if context[kernel] == index:
                    value = words.take(tables[index]) - middle
                    s[kernel][t] = -value if ahead[kernel] < 0 else value
    return [value + middle for kernel in s for value in kernel]


# Round trips.


def smooth(*shape: int, levels: int = 9, seed: int = 0) -> Tensor:
    """Codes whose neighbours in a kernel are alike."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(*shape[:2], *[1] * (len(shape) - 2), generator=draw)
    values = base * torch.rand(shape[0], 1, *[1] * (len(shape) - 2), generator=draw)
    values = values + 0.5 * torch.randn(shape, generator=draw)
    middle = levels // 2
    return (1.5 * values).round().clamp(-middle, middle).add(middle).to(torch.uint8)


def runs_of(symbols: list[tuple[Tensor, int]]) -> list[Run]:
    return [Run(tuple(one.shape), levels) for one, levels in symbols]


SOME = [
    (smooth(6, 4, 3, 3), 9),
    (smooth(8, 16, levels=5), 5),
    (smooth(5, 3, 4, levels=31), 31),
    (torch.zeros(4, 4, 3, 3, dtype=torch.uint8), 3),
    (torch.empty(0, dtype=torch.uint8), 255),
    (torch.randint(0, 7, (40,), generator=torch.Generator().manual_seed(1)).to(torch.uint8), 255),
    (torch.tensor([2], dtype=torch.uint8), 4),
]


def test_what_is_coded_comes_back_and_another_reader_reads_the_same() -> None:
    data = encode_runs(SOME)
    decoded = decode_runs(data, runs_of(SOME))
    for (symbols, _), found in zip(SOME, decoded, strict=True):
        assert torch.equal(found, symbols.flatten())
    assert read(data, runs_of(SOME)) == [symbols.flatten().tolist() for symbols, _ in SOME]
    assert decode_runs(encode_runs([]), []) == []


def test_contexts_are_used_where_they_pay() -> None:
    codes = smooth(32, 32, 3, 3)
    heads = [
        zstandard.ZstdDecompressor().decompress(data[8 : 8 + int.from_bytes(data[4:8], "little")])
        for data in (encode_runs([(codes, 9)]), encode_runs([(codes.flatten(), 9)]))
    ]
    assert [head[0] for head in heads] == [1, 0]
    assert len(encode_runs([(codes, 9)])) < 0.93 * len(encode_runs([(codes.flatten(), 9)]))
    shuffled = codes.flatten()[torch.randperm(codes.numel())].view(codes.shape)
    assert read(encode_runs([(shuffled[:4], 9)]), [Run((4, 32, 3, 3), 9)])[0] == (
        shuffled[:4].flatten().tolist()
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_symbols_come_back(data: st.DataObject) -> None:
    runs = []
    for _ in range(data.draw(st.integers(0, 3))):
        levels = data.draw(st.sampled_from([2, 3, 5, 9, 17, 31, 63, 255]))
        shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
        count = int(np.prod(shape))
        symbols = data.draw(st.lists(st.integers(0, levels - 1), min_size=count, max_size=count))
        runs.append((torch.tensor(symbols, dtype=torch.uint8).view(shape), levels))
    decoded = decode_runs(encode_runs(runs), runs_of(runs))
    assert all(
        torch.equal(found, symbols.flatten())
        for (symbols, _), found in zip(runs, decoded, strict=True)
    )


# Sizes.


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.5])
def test_without_kernels_codes_take_their_entropy(spread: float) -> None:
    """The bits that ``octavo.ptq.pricing`` counts are those that the coder writes."""
    draw = torch.Generator().manual_seed(0)
    codes = (spread * torch.randn(200, 300, generator=draw)).round().clamp(-4, 4).add(4)
    codes = codes.to(torch.uint8)
    size = len(encode_runs([(codes, 9)]))
    assert 0.998 * entropy_bytes(codes, 4) < size < 1.005 * entropy_bytes(codes, 4) + 40


def test_kernels_take_fewer_bytes_than_in_the_fast_coding() -> None:
    codes = smooth(64, 64, 3, 3)
    assert len(encode_runs([(codes, 9)])) < 0.95 * len(encode_codes(codes, 4))


def test_frequencies_are_whole_numbers_whatever_the_table() -> None:
    for table, levels in (
        (np.array([0, *range(0, 250, 10)], np.uint8), 25),
        (np.array([1, 0, 255, 254], np.uint8), 5),
        (np.array([0, 255, 0, 255], np.uint8), 3),
    ):
        found = frequencies(table, levels)
        assert found.sum() == 1 << 24
        assert found.min() >= 1
        assert found.tolist() == frequencies_of(int(table[0]), table[1:].tobytes(), levels)


# Hostile bytes.


def sealed(content: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(content)) + content


def forged(heads: bytes, words: bytes = b"") -> bytes:
    frame = zstandard.ZstdCompressor().compress(heads)
    return sealed(struct.pack("<I", len(frame)) + frame + words)


GOOD = encode_runs(SOME)
FRAME = zstandard.ZstdCompressor().compress(b"\0\1\0\0")


def test_cuts_and_flipped_bits_are_noticed() -> None:
    for length in range(0, len(GOOD), 7):
        with pytest.raises(FormatError, match=r"cut short|damaged"):
            decode_runs(GOOD[:length], runs_of(SOME))
    for place in range(0, len(GOOD), 5):
        flipped = bytearray(GOOD)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(FormatError, match="damaged"):
            decode_runs(bytes(flipped), runs_of(SOME))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (sealed(struct.pack("<I", 100)), "expected 100 bytes of tables"),
        (forged(bytes([0, 0, 0, 0, 0]), b"abc"), "and words"),
        (sealed(struct.pack("<I", 3) + b"abc"), "frame"),
        (sealed(struct.pack("<I", len(FRAME) + 4) + FRAME + b"junk"), "broken zstandard frame"),
        (forged(b""), "expected 1 more bytes of tables, found 0"),
        (forged(b"\7"), r"expected one of the bytes \(0, 1\), found 7"),
        (forged(b"\0\3"), r"expected one of the bytes \(0, 1, 2\), found 3"),
        (forged(b"\0\0ab"), "expected 3 more bytes of tables, found 2"),
        (forged(b"\0\0\xff\xff\xff"), "one of 3 symbols, found none"),
        (forged(b"\0\1\0\0more"), "expected nothing after the last table, found 4"),
        (forged(b"\0\2"), "expected a table for every context"),
        (forged(b"\1\1\1" + b"\2" * 6), "expected a table for every context"),
        (forged(b"\0\1\0\0", b"\1\0\0\0" * 9), "found more words"),
        (forged(b"\0\1\0\0", b"\0\0\0\0"), "damaged"),
        (forged(bytes(10**6)), "expected tables of at most"),
    ],
)
def test_forged_bytes_say_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_runs(data, [Run((2, 3, 4), 3)])


def test_an_even_number_of_symbols_has_no_mirror() -> None:
    for heads in (b"\0\1\0\0", b"\1\1\1" + b"\2" * 6):
        with pytest.raises(FormatError, match=r"expected one of the bytes|expected no contexts"):
            decode_runs(forged(heads), [Run((2, 3, 4), 4)])


def test_other_runs_are_noticed() -> None:
    for runs in (runs_of(SOME)[:-1], runs_of(SOME)[1:], [*runs_of(SOME), Run((3,), 5)]):
        with pytest.raises(FormatError):
            decode_runs(GOOD, runs)
