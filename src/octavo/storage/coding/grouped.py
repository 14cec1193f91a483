"""Codes to bytes and back, near the codes' order-0 entropy and as fast as Huffman decoding in C.

zstandard's Huffman stage comes within a few per cent of the entropy as long as its symbols are many
and none dominates. Two steps see to that.

**Grouping** makes one byte of as many symbols as fit it (5, 3, 2, 1 at 2, 3, 4, 5 bits). They are
the digits of a number whose base is the number of levels, the first symbol lowest; zeros fill up
the last byte.

**Dropping** is repeated while one symbol dominates. The other symbols are set aside, numbered
without the dominant one. What is left to code are the bits that say where they stood, 8 a byte,
highest first. Those bytes are the symbols, of 256 levels, of the next round.

Format, little-endian: u32 CRC-32 of all that follows; u8 bits; u64 number of codes; u8 number of
rounds, and as many bytes, the symbol dropped in each; one zstandard frame that states its size. The
frame holds the symbols left after the last round, then those set aside in each round, last round
first; each of these streams is grouped by itself.
"""

import functools
import struct
import zlib
from typing import TypeAlias

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from octavo.errors import FormatError
from octavo.formats.width import Width, WidthLike, read_width

__all__ = ["decode_codes", "encode_codes", "entropy_bytes"]

Symbols: TypeAlias = NDArray[np.uint8]

CHECKSUM = struct.Struct("<I")
HEADER = struct.Struct("<BQB")
BYTE = 256  # levels of a byte
BLOCK = 1 << 14  # pairs of bytes decoded at a time: they stay in a core's second-level cache
# Above this share of the bytes, a Huffman code, whose codes take one bit or two, may be 2 % off.
DOMINANT = 1 / 4
FEWEST = 8  # symbols; the bits that say where they stood fill a byte

# A match costs more than the Huffman codes it replaces, so look for as few as zstandard allows.
HUFFMAN = zstandard.ZstdCompressionParameters.from_level(1, hash_log=6, min_match=7)


def encode_codes(codes: Tensor, width: WidthLike) -> bytes:
    """Return ``codes`` as bytes, at most 200 bytes and 2 % (if they are very skewed, 3 %) above
    their order-0 entropy.

    Args:
        codes: uint8, any shape, each below the number of levels.
        width: the width of the codes; a plain int is one of powers of two.

    Raises:
        ValueError: bits out of range, or codes of another type or out of range.

    """
    width = read_width(width)
    symbols = _checked(codes, width)
    levels = width.level_count
    streams: list[Symbols] = []
    dropped = bytearray()
    dominant = _dominant(symbols, levels)
    while dominant is not None:
        elsewhere = symbols != dominant
        others = symbols[elsewhere]
        streams.append(_group(others - (others > dominant), levels - 1))
        dropped.append(dominant)
        symbols = np.packbits(elsewhere)
        levels = BYTE
        dominant = _dominant(symbols, levels)
    streams.append(_group(symbols, levels))
    header = HEADER.pack(width.bits, codes.numel(), len(dropped))
    content = header + dropped + _to_frame(streams[::-1])
    return CHECKSUM.pack(zlib.crc32(content)) + content


def decode_codes(data: bytes, count: int, width: WidthLike) -> Tensor:
    """Return the ``count`` codes that ``encode_codes`` was given, flat uint8.

    Memory goes by ``count``, whatever ``data`` asks for.

    Raises:
        FormatError: ``data`` is damaged, or holds another number of codes, or codes of other bits;
            the message says which.

    """
    width = read_width(width)
    packed, dropped = _open(data, count, width.bits)
    sizes = _sizes(count, len(dropped))
    levels = [width.level_count] + [BYTE] * len(dropped)
    if dropped and dropped[0] >= levels[0]:
        raise FormatError(f"expected codes below {levels[0]} at {width} bits, found {dropped[0]}")
    symbols, packed = _ungroup(packed, sizes[-1], levels[-1])
    for round_ in reversed(range(len(dropped))):
        stood = np.unpackbits(symbols, count=sizes[round_]).view(np.bool_)
        if symbols.size and symbols[-1] & (BYTE - 1 >> (sizes[round_] - 1) % 8 + 1):
            raise FormatError("expected zeros after the last bit of a mask, found others")
        others, packed = _ungroup(packed, int(np.count_nonzero(stood)), levels[round_] - 1)
        dominant = dropped[round_]
        symbols = np.full(sizes[round_], dominant, np.uint8)
        symbols[stood] = others + (others >= dominant)
    if packed.size:
        raise FormatError(f"expected nothing after the last code, found {packed.size} bytes")
    return torch.from_numpy(symbols)


def entropy_bytes(codes: Tensor, width: WidthLike) -> float:
    """Return the order-0 entropy of ``codes`` in bytes.

    It is the least that a coder needs which knows only how frequent each code is.
    """
    counts = _counts(_checked(codes, read_width(width)))
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


def _checked(codes: Tensor, width: Width) -> Symbols:
    """Return ``codes`` as a flat array, after a check that they are in range."""
    levels = width.level_count
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes: expected torch.uint8, got {codes.dtype}")
    symbols: Symbols = codes.detach().cpu().flatten().numpy()
    if symbols.size and symbols.max() >= levels:
        raise ValueError(
            f"codes: expected at most {levels - 1} at {width} bits, got {symbols.max()}"
        )
    return symbols


def _counts(symbols: Symbols) -> NDArray[np.int64]:
    """Count each symbol. (numpy's own bincount first makes an int64 of each.)"""
    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(symbols)).numpy()
    return counts


def _dominant(symbols: Symbols, levels: int) -> int | None:
    """Return the symbol, if there is one, that would fill more than DOMINANT of the bytes all by
    itself.
    """
    if symbols.size < FEWEST:
        return None
    counts = _counts(symbols)
    most_common = int(counts.argmax())
    share = counts[most_common] / symbols.size
    return most_common if share ** _per_byte(levels) > DOMINANT else None


def _sizes(count: int, rounds: int) -> list[int]:
    """Count the symbols that each round starts with, and those left after the last."""
    sizes = [count]
    for _ in range(rounds):
        sizes.append(-(-sizes[-1] // 8))
    return sizes


def _per_byte(levels: int) -> int:
    """Count the symbols that fit a byte: the largest k with ``levels^k <= 256``."""
    return next(k for k in range(8, 0, -1) if levels**k <= BYTE)


def _group(symbols: Symbols, levels: int) -> Symbols:
    """Return the bytes of several symbols each."""
    per_byte = _per_byte(levels)
    digits = np.zeros((-(-symbols.size // per_byte), per_byte), np.uint8)
    digits.reshape(-1)[: symbols.size] = symbols
    packed: Symbols = digits @ (levels ** np.arange(per_byte)).astype(np.uint8)
    return packed


def _ungroup(packed: Symbols, count: int, levels: int) -> tuple[Symbols, Symbols]:
    """Return the first ``count`` symbols in ``packed``, and the bytes after them."""
    per_byte = _per_byte(levels)
    size = -(-count // per_byte)
    if packed.size < size:
        raise FormatError(f"expected {size} bytes for {count} symbols, found {packed.size}")
    groups = packed[:size]
    last = int(groups.max(initial=0)) // levels ** (per_byte - 1)  # the symbol that is too large
    if last >= levels:
        raise FormatError(f"expected symbols below {levels}, found {last}")
    digits = np.empty((size, per_byte), np.uint8)
    odd = size % 2
    digits[size - odd :] = _digits(levels)[groups[size - odd :]]
    pairs = groups[: size - odd].view("<u2")
    of_pairs = digits[: size - odd].reshape(-1, 2 * per_byte)
    table = _digits_of_pairs(levels)
    index = np.empty(min(BLOCK, pairs.size), np.intp)
    for start in range(0, pairs.size, BLOCK):
        some = index[: pairs.size - start]
        some[:] = pairs[start : start + BLOCK]
        table.take(some, axis=0, out=of_pairs[start : start + BLOCK], mode="clip")
    if digits.reshape(-1)[count:].any():
        raise FormatError("expected zeros after the last symbol, found others")
    return digits.reshape(-1)[:count], packed[size:]


@functools.cache
def _digits(levels: int) -> Symbols:
    """Return the symbols in each byte, (256, symbols of a byte)."""
    places = levels ** np.arange(_per_byte(levels))
    table: Symbols = (np.arange(BYTE)[:, None] // places % levels).astype(np.uint8)
    return table


@functools.cache
def _digits_of_pairs(levels: int) -> Symbols:
    """Return the symbols in two bytes, a row for each value of them as a little-endian integer: to
    look up a pair takes no longer than to look up one byte.
    """
    first = _digits(levels)
    second = first[: levels ** _per_byte(levels), None]
    shape = (len(second), *first.shape)
    table = np.stack([np.broadcast_to(first, shape), np.broadcast_to(second, shape)], axis=2)
    return table.reshape(-1, 2 * first.shape[1])


def _to_frame(streams: list[Symbols]) -> bytes:
    """Return one zstandard frame. A flush gives each stream Huffman tables of its own."""
    frame = zstandard.ZstdCompressor(compression_params=HUFFMAN).compressobj(
        size=sum(map(len, streams))
    )
    blocks = [
        frame.compress(stream.tobytes()) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for stream in streams
    ]
    return b"".join(blocks) + frame.flush()


def _from_frame(frame: memoryview, limit: int) -> Symbols:
    """Return the content of a frame, of at most ``limit`` bytes.

    The size is looked at first, because zstandard reserves whatever a frame asks for.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size > limit:
            raise FormatError(
                f"expected a zstandard frame of at most {limit} bytes, "
                f"found one that asks for {size}"
            )
        content = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise FormatError(f"broken zstandard frame: {error}") from error
    return np.frombuffer(content, np.uint8)


def _open(data: bytes, count: int, bits: int) -> tuple[Symbols, bytes]:
    """Return the grouped symbols in ``data`` and the dropped symbols, after a check of everything
    else.
    """
    start = CHECKSUM.size + HEADER.size
    if len(data) < start:
        raise FormatError(f"cut short: expected a header of {start} bytes, found {len(data)} bytes")
    (expected,) = CHECKSUM.unpack_from(data)
    content = memoryview(data)[CHECKSUM.size :]
    found = zlib.crc32(content)
    if found != expected:
        raise FormatError(
            f"damaged or cut short: expected checksum {expected:08x}, found {found:08x}"
        )
    found_bits, found_count, rounds = HEADER.unpack_from(content)
    if (found_count, found_bits) != (count, bits):
        raise FormatError(
            f"expected {count} codes of {bits} bits, found {found_count} of {found_bits}"
        )
    dropped = content[HEADER.size :][:rounds]
    frame = content[HEADER.size + rounds :]
    return _from_frame(frame, sum(_sizes(count, rounds))), bytes(dropped)
