"""Codes to bytes and back: near the codes' order-0 entropy, as fast as Huffman decoding in C.

zstandard's Huffman stage comes within a per cent or two of the entropy, as long as its symbols are
many and none dominates. Two steps see to that. **Grouping** makes one byte of as many symbols as
fit it (5, 3, 2, 1 at 2, 3, 4, 5 bits): the digits of a number whose base is the number of levels,
first symbol lowest; zeros fill up the last byte.
**Dropping**: while one symbol dominates, the others are set aside, numbered without it, and what is
    left to code is the
bits that say where they stood, 8 a byte, highest first. Those bytes are the symbols, of 256 levels,
of the next round.

Format, little-endian: u32 CRC-32 of all that follows; u8 bits; u64 number of codes; u8 number of
rounds, and as many bytes, the symbol dropped in each; one zstandard frame that states its size. The
frame holds the symbols left after the last round, then those set aside in each round, last round
first; each of these streams grouped by itself.
"""

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

__all__ = ["compress", "decompress", "entropy_bytes"]

Symbols: TypeAlias = NDArray[np.uint8]

CHECKSUM = struct.Struct("<I")
HEADER = struct.Struct("<BQB")
BYTE = 256  # levels of a byte
DOMINANT = (
    1 / 4
)  # share of the bytes above which a Huffman code, with a choice of one bit or two, may be 2 % off
FEWEST = 8  # symbols; the bits that say where they stood fill a byte

# A match costs more than the Huffman codes it replaces, so look for as few as zstandard allows.
HUFFMAN = zstandard.ZstdCompressionParameters.from_level(1, hash_log=6, min_match=7)


def compress(codes: Tensor, width: WidthLike) -> bytes:
    """``codes`` as bytes: at most 200 bytes and 2 % (if they are very skewed, 3 %) above their
    order-0 entropy.

    Args:
        codes: uint8, any shape, each below the number of levels.
        width: the width of the codes; a plain int is one of powers of two.

    Raises:
        ValueError: bits out of range, or codes of another type or out of range.

    """
    width = read_width(width)
    symbols, levels = _checked(codes, width), width.level_count
    streams, dropped = [], bytearray()
    while (common := _dominant(symbols, levels)) is not None:
        elsewhere = symbols != common
        others = symbols[elsewhere]
        streams.append(_group(others - (others > common), levels - 1))
        dropped.append(common)
        symbols, levels = np.packbits(elsewhere), BYTE
    streams.append(_group(symbols, levels))
    content = HEADER.pack(width.bits, codes.numel(), len(dropped)) + dropped + _to_frame(streams[::-1])
    return CHECKSUM.pack(zlib.crc32(content)) + content


def decompress(data: bytes, count: int, width: WidthLike) -> Tensor:
    """The ``count`` codes that ``compress`` was given, flat uint8. Memory goes by ``count``,
    whatever ``data`` asks for.

    Raises:
        FormatError: ``data`` is damaged, or holds another number of codes, or codes of other bits;
            it says which.

    """
    width = read_width(width)
    packed, dropped = _open(data, count, width.bits)
    sizes = _sizes(count, len(dropped))
    levels = [width.level_count] + [BYTE] * len(dropped)
    if dropped and dropped[0] >= levels[0]:
        raise FormatError(f"expected codes below {levels[0]} at {width} bits, found {dropped[0]}")
    symbols, packed = _ungroup(packed, sizes[-1], levels[-1])
    for common, size, level_count in zip(dropped[::-1], sizes[-2::-1], levels[-2::-1], strict=True):
        places = np.flatnonzero(np.unpackbits(symbols, count=size).view(np.bool_))
        others, packed = _ungroup(packed, places.size, level_count - 1)
        symbols = np.full(size, common, np.uint8)
        symbols[places] = others + (others >= common)
    if packed.size:
        raise FormatError(f"expected nothing after the last code, found {packed.size} bytes")
    return torch.from_numpy(symbols)


def entropy_bytes(codes: Tensor, width: WidthLike) -> float:
    """Order-0 entropy of ``codes`` in bytes: the least for a coder that knows only how frequent
    each code is.
    """
    counts = _counts(_checked(codes, read_width(width)))
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


def _checked(codes: Tensor, width: Width) -> Symbols:
    """``codes`` as a flat array, known to be in range."""
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
    """How often each symbol occurs. (numpy's own bincount first makes an int64 of each.)"""
    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(symbols)).numpy()
    return counts


def _dominant(symbols: Symbols, levels: int) -> int | None:
    """The symbol, if there is one, that would fill more than DOMINANT of the bytes all by
    itself.
    """
    if symbols.size < FEWEST:
        return None
    counts = _counts(symbols)
    common = int(counts.argmax())
    return common if (counts[common] / symbols.size) ** _per_byte(levels) > DOMINANT else None


def _sizes(count: int, rounds: int) -> list[int]:
    """How many symbols each round starts with, and how many are left after the last."""
    sizes = [count]
    for _ in range(rounds):
        sizes.append(-(-sizes[-1] // 8))
    return sizes


def _per_byte(levels: int) -> int:
    """How many symbols fit a byte: the largest k with ``levels^k <= 256``."""
    return next(k for k in range(8, 0, -1) if levels**k <= BYTE)


def _group(symbols: Symbols, levels: int) -> Symbols:
    per_byte = _per_byte(levels)
    digits = np.zeros((-(-symbols.size // per_byte), per_byte), np.uint8)
    digits.reshape(-1)[: symbols.size] = symbols
    packed: Symbols = digits @ (levels ** np.arange(per_byte)).astype(np.uint8)
    return packed


def _ungroup(packed: Symbols, count: int, levels: int) -> tuple[Symbols, Symbols]:
    """The first ``count`` symbols in ``packed``, and the bytes after them."""
    per_byte = _per_byte(levels)
    size = -(-count // per_byte)
    if packed.size < size:
        raise FormatError(f"expected {size} bytes for {count} symbols, found {packed.size}")
    digits = np.empty((size, per_byte), np.uint8)
    rest = packed[:size]
    for place in range(per_byte - 1):
        np.remainder(rest, levels, out=digits[:, place])
        rest = rest // levels
    digits[:, -1] = rest
    if size and rest.max() >= levels:
        raise FormatError(f"expected symbols below {levels}, found {rest.max()}")
    return digits.reshape(-1)[:count], packed[size:]


def _to_frame(streams: list[Symbols]) -> bytes:
    """One zstandard frame. Each stream is flushed, which gives it Huffman tables of its own."""
    frame = zstandard.ZstdCompressor(compression_params=HUFFMAN).compressobj(
        size=sum(map(len, streams))
    )
    blocks = [
        frame.compress(stream.tobytes()) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        for stream in streams
    ]
    return b"".join(blocks) + frame.flush()


def _from_frame(frame: memoryview, limit: int) -> Symbols:
    """What the frame holds. Its size is looked at first, as zstandard reserves whatever a frame
    asks for.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size > limit:
            raise FormatError(
                f"expected a zstandard frame of at most {limit} bytes, found one that asks for {size}"
            )
        content = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise FormatError(f"broken zstandard frame: {error}") from error
    return np.frombuffer(content, np.uint8)


def _open(data: bytes, count: int, bits: int) -> tuple[Symbols, bytes]:
    """The grouped symbols in ``data``, and the symbols dropped, once everything else about it is
    known to be right.
    """
    start = CHECKSUM.size + HEADER.size
    if len(data) < start:
        raise FormatError(f"cut short: expected a header of {start} bytes, found {len(data)} bytes")
    (expected,), content = CHECKSUM.unpack_from(data), memoryview(data)[CHECKSUM.size :]
    if (found := zlib.crc32(content)) != expected:
        raise FormatError(
            f"damaged or cut short: expected checksum {expected:08x}, found {found:08x}"
        )
    found_bits, found_count, rounds = HEADER.unpack_from(content)
    if (found_count, found_bits) != (count, bits):
        raise FormatError(
            f"expected {count} codes of {bits} bits, found {found_count} of {found_bits}"
        )
    dropped, frame = content[HEADER.size :][:rounds], content[HEADER.size + rounds :]
    return _from_frame(frame, sum(_sizes(count, rounds))), bytes(dropped)
