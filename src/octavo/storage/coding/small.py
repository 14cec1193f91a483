"""Codes to bytes and back in as few bytes as possible: an ANS coder with tables for each layer.

``octavo.storage.coding.grouped`` decodes faster. This coder takes 2 to 7 % fewer bytes on
convolutional networks: it has no whole bits to round to, layers have tables of their own, and so
have the contexts of ``octavo.storage.coding.kernels``. Coding itself is done by the library
``constriction`` (asymmetric numeral systems, arXiv 1311.2540).

A **run** is a tensor of symbols. Its symbols have one table, or one for each of six contexts, which
the writer decides. A table has a byte ``t`` for each symbol: its frequency is in proportion to
``2^(-t/8)``, or next to nothing where ``t`` is 255. If a table is symmetric, the symbols ``i`` and
``L - 1 - i`` of ``L``, an odd number, share a byte. Integer frequencies that add up to ``2^24``
come from these bytes: see :func:`frequencies`.

Format, little-endian: u32 CRC-32 of all that follows; u32 size of the next part; one zstandard
frame that states its size: the heads of all runs; then the words of the coder, u32, of which the
last are read first. A head has a byte, 1 if there are contexts, and then ``near`` and ``active``, a
byte each; then the tables: a byte, 0 for a table of all symbols, 1 for a symmetric one, from the
middle on, or 2 for no table; and its bytes.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from octavo.errors import FormatError, install
from octavo.storage.coding.kernels import CONTEXTS, Contexts, Signed, in_kernels, visited

__all__ = ["Run", "check_library", "decode_runs", "encode_runs", "frequencies"]

HEADER = struct.Struct("<II")
PRECISION = 24  # frequencies add up to 2^24
UNUSED = 255
EACH, SYMMETRIC, NONE = range(3)  # kinds of tables
# 2^(-k/8) for k of 0 to 7 in units of 2^-24, rounded: so a reader needs no floats.
EIGHTHS = np.array(
    [16777216, 15384774, 14107901, 12937002, 11863283, 10878678, 9975792, 9147842], dtype=np.int64
)
TABLE_BITS = 5  # about what a byte of a table takes in the file

Bytes: TypeAlias = NDArray[np.uint8]
Counts: TypeAlias = NDArray[np.float64]


class Run(NamedTuple):
    """The shape of a run, and the number of different symbols that it may have."""

    shape: tuple[int, ...]
    levels: int


@dataclass(frozen=True, eq=False)
class _Head:
    """The facts that a reader must know of a run before its symbols.

    Attributes:
        contexts: the numbers of the contexts; None if there is one table for all symbols.
        tables: a table for each context, or the only one: the byte of its kind, and its bytes.

    """

    contexts: Contexts | None
    tables: list[Bytes]

    def to_bytes(self) -> bytes:
        """Return the head as it is in the file."""
        one = self.contexts
        start = bytes([0]) if one is None else bytes([1, one.near, one.active])
        return start + b"".join(table.tobytes() for table in self.tables)


@dataclass(frozen=True, eq=False)
class _Part:
    """Symbols that have one table, and the index of the table."""

    table: int
    symbols: Bytes


def encode_runs(runs: Sequence[tuple[Tensor, int]]) -> bytes:
    """Return runs as bytes.

    Args:
        runs: the symbols of each, uint8, and how many different ones there may be. Codes have the
            output channels first; if they have kernels, contexts are tried.

    """
    coder = _library().stream.stack.AnsCoder()
    planned = [_planned(symbols.cpu().numpy(), levels) for symbols, levels in runs]
    for (head, parts), (_, levels) in reversed(list(zip(planned, runs, strict=True))):
        models = [_model(table, levels) for table in head.tables]
        for part in reversed(parts):
            coder.encode_reverse(part.symbols.astype(np.int32), models[part.table])
    heads = b"".join(head.to_bytes() for head, _ in planned)
    frame = zstandard.ZstdCompressor(19).compress(heads)
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    content = struct.pack("<I", len(frame)) + frame + words
    return struct.pack("<I", zlib.crc32(content)) + content


def decode_runs(data: bytes, runs: Sequence[Run]) -> list[Tensor]:
    """Return the symbols of each run, flat uint8.

    Memory goes by the runs, whatever ``data`` asks for.

    Raises:
        FormatError: ``data`` is damaged, or holds other runs; the message says which.

    """
    frame, words = _opened(data)
    heads = _read_heads(_expanded(frame, sum(CONTEXTS * (run.levels + 2) for run in runs)), runs)
    try:
        coder = _library().stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
        decoded = [_decoded(coder, head, run) for head, run in zip(heads, runs, strict=True)]
    except ValueError as error:
        raise FormatError(f"damaged: {error}") from error
    if not coder.is_empty():
        raise FormatError("expected nothing after the last symbol, found more words")
    return [torch.from_numpy(symbols) for symbols in decoded]


def _planned(symbols: Bytes, levels: int) -> tuple[_Head, list[_Part]]:
    """Return the head of a run, and its symbols in the order in which they are read."""
    parts = [_Part(0, symbols.reshape(-1))] if symbols.size else []
    head = _Head(None, [_table(_counts(parts, 0, levels))])
    kernels, positions, width = in_kernels(symbols.shape)
    if positions < 2 or not kernels or levels % 2 == 0:
        return head, parts
    signed = symbols.reshape(kernels, positions).T.astype(np.int16) - np.int16(levels // 2)
    contexts = Contexts.of(signed)
    in_contexts = list(_in_contexts(signed, width, levels // 2, contexts))
    counts = [_counts(in_contexts, index, levels) for index in range(CONTEXTS)]
    tables = [_table(some) for some in counts]
    bits = sum(_bits(table, some) for table, some in zip(tables, counts, strict=True))
    if bits < _bits(head.tables[0], _counts(parts, 0, levels)):
        return _Head(contexts, tables), in_contexts
    return head, parts


def _in_contexts(signed: Signed, width: int, middle: int, contexts: Contexts) -> Iterator[_Part]:
    """Yield the symbols of a run with contexts, in the order in which they are read."""
    for position, index, here, sign in visited(signed, width, contexts):
        yield _Part(index, (sign * signed[position, here] + middle).astype(np.uint8))


def _decoded(coder: Any, head: _Head, run: Run) -> Bytes:
    """Return the symbols of the next run."""
    models = [_model(table, run.levels) for table in head.tables]
    if head.contexts is None:
        return _taken(coder, models[0], int(np.prod(run.shape)))
    kernels, positions, width = in_kernels(run.shape)
    middle = np.int16(run.levels // 2)
    signed = np.zeros((positions, kernels), np.int16)
    for position, index, here, sign in visited(signed, width, head.contexts):
        signed[position, here] = sign * (_taken(coder, models[index], len(here)) - middle)
    return (signed.T + middle).astype(np.uint8).reshape(-1)


def _taken(coder: Any, model: Any, count: int) -> Bytes:
    """Return the next symbols."""
    if not count:
        return np.empty(0, np.uint8)
    if model is None:
        raise FormatError("expected a table for every context that occurs, found none")
    symbols: Bytes = coder.decode(model, count).astype(np.uint8)
    return symbols


def _counts(parts: Sequence[_Part], table: int, levels: int) -> Counts:
    """Count the symbols that have a table."""
    counts = np.zeros(levels)
    for part in parts:
        if part.table == table:
            counts += np.bincount(part.symbols, minlength=levels)
    return counts


def _table(counts: Counts) -> Bytes:
    """Return the table that takes the fewest bits, with the byte of its kind."""
    if not counts.any():
        return np.array([NONE], np.uint8)
    candidates = [np.array([EACH, *_eighths(counts)], np.uint8)]
    if len(counts) % 2:
        mirrored = (counts + counts[::-1])[len(counts) // 2 :] / 2
        candidates.append(np.array([SYMMETRIC, *_eighths(mirrored)], np.uint8))
    return min(candidates, key=lambda table: _bits(table, counts))


def _eighths(counts: Counts) -> Counts:
    with np.errstate(divide="ignore"):
        eighths = np.rint(8 * np.log2(counts.max() / counts))
    return np.where(counts > 0, np.minimum(eighths, UNUSED - 1), UNUSED)


def _bits(table: Bytes, counts: Counts) -> float:
    """Return about how many bits symbols take, with their table."""
    if not counts.any():
        return 0.0
    frequency = frequencies(table, len(counts))
    used = int((table[1:] != UNUSED).sum())
    return float(counts @ (PRECISION - np.log2(frequency))) + TABLE_BITS * used


def frequencies(table: Bytes, levels: int) -> NDArray[np.int64]:
    """Return the frequency of each symbol; they add up to ``2^24``.

    A byte ``t`` stands for the weight ``EIGHTHS[t mod 8] // 2^(t // 8)``, and 255 for 0. Weights
    are multiplied with ``2^24 - L``, divided by their sum and rounded down; what is missing to
    ``2^24 - L`` goes to the first of the largest; and 1 is added to each.
    """
    entries = table[1:].astype(np.int64)
    if table[0] == SYMMETRIC:  # from the middle symbol on
        entries = np.concatenate([entries[:0:-1], entries])
    weights = np.where(entries == UNUSED, 0, EIGHTHS[entries % 8] >> (entries // 8))
    room = (1 << PRECISION) - levels
    frequency = weights * room // weights.sum()
    frequency[frequency.argmax()] += room - frequency.sum()
    result: NDArray[np.int64] = frequency + 1
    return result


def _model(table: Bytes, levels: int) -> Any:
    """Return the library's model of a table; None without a table. It makes its weights add up to
    ``2^24 - L`` and adds 1 to each; ours do so already, and are exact in float32.
    """
    if table[0] == NONE:
        return None
    weights = (frequencies(table, levels) - 1).astype(np.float32)
    return _library().stream.model.Categorical(weights, perfect=False)


def check_library() -> None:
    """Raise FormatError if the library of this coding is missing."""
    _library()


def _library() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise FormatError(
            f'the coder "small" needs the library constriction: {install("small")}'
        ) from error
    return constriction


def _opened(data: bytes) -> tuple[bytes, bytes]:
    """Return the frame of the heads and the words, after a check of the checksum."""
    if len(data) < HEADER.size:
        raise FormatError(
            f"cut short: expected a header of {HEADER.size} bytes, found {len(data)} bytes"
        )
    expected, size = HEADER.unpack_from(data)
    found = zlib.crc32(memoryview(data)[4:])
    if found != expected:
        raise FormatError(
            f"damaged or cut short: expected checksum {expected:08x}, found {found:08x}"
        )
    frame = data[HEADER.size : HEADER.size + size]
    words = data[HEADER.size + size :]
    if len(frame) < size or len(words) % 4:
        raise FormatError(f"expected {size} bytes of tables, and words, found {len(data)} bytes")
    return frame, words


def _expanded(frame: bytes, limit: int) -> bytes:
    """Return the content of a frame of at most ``limit`` bytes; its size is looked at first."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= limit:
            raise FormatError(f"expected tables of at most {limit} bytes, found {size}")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"broken zstandard frame: {error}") from error


def _read_heads(content: bytes, runs: Sequence[Run]) -> list[_Head]:
    """Return the head of each run."""
    reader = _Reader(content)
    heads = []
    for run in runs:
        contexts = Contexts(*reader.take(2)) if reader.one_of(0, 1) else None
        if contexts is not None and not run.levels % 2:
            raise FormatError(f"expected no contexts for {run.levels} symbols, found some")
        count = 1 if contexts is None else CONTEXTS
        heads.append(_Head(contexts, [reader.table(run.levels) for _ in range(count)]))
    if reader.content:
        raise FormatError(f"expected nothing after the last table, found {len(reader.content)}")
    return heads


class _Reader:
    """Hands out bytes from the front."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if len(self.content) < count:
            raise FormatError(f"expected {count} more bytes of tables, found {len(self.content)}")
        taken, self.content = self.content[:count], self.content[count:]
        return taken

    def one_of(self, *known: int) -> int:
        """Return the next byte, one of those that are known."""
        (value,) = self.take(1)
        if value not in known:
            raise FormatError(f"expected one of the bytes {known}, found {value}")
        return value

    def table(self, levels: int) -> Bytes:
        """Return the next table, with the byte of its kind."""
        kind = self.one_of(*((EACH, SYMMETRIC, NONE) if levels % 2 else (EACH, NONE)))
        size = {EACH: levels, SYMMETRIC: levels // 2 + 1, NONE: 0}[kind]
        table = np.array([kind, *self.take(size)], np.uint8)
        if kind != NONE and (table[1:] == UNUSED).all():
            raise FormatError(f"expected a table with one of {levels} symbols, found none")
        return table
