"""Byte strings of a packed file: compressed and expanded within bounds, and read piece by piece."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import zstandard
from torch import Tensor

from octavo.errors import FormatError

__all__ = ["Stream", "as_tensor", "expand", "squeeze", "string"]


@dataclass
class Stream:
    """A vector that hands out its values piece by piece."""

    name: str
    values: Tensor
    position: int = 0

    def take(self, count: int) -> Tensor:
        """Return the next values."""
        piece = self.values[self.position : self.position + count]
        if len(piece) != count:
            raise FormatError(
                f"{self.name}: truncated: expected {count} more values, got {len(piece)}"
            )
        self.position += count
        return piece

    def check_used_up(self) -> None:
        """Raise FormatError if some values were not taken."""
        if self.position != len(self.values):
            raise FormatError(
                f"{self.name}: {len(self.values) - self.position} values belong to no tensor "
                "of the manifest"
            )


def string(blobs: Mapping[str, bytes], name: str) -> bytes:
    """Return the byte string of a name."""
    if name not in blobs:
        raise FormatError(f"{name}: missing in the file")
    return blobs[name]


def as_tensor(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return bytes as a vector of a type."""
    if not data:  # which frombuffer refuses
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.frombuffer(bytearray(data), dtype=dtype)


def squeeze(data: bytes, level: int = 19) -> bytes:
    """Return bytes as one zstandard frame that states its content size."""
    return zstandard.ZstdCompressor(level, write_checksum=False).compress(data)


def expand(data: bytes, most: int, name: str) -> bytes:
    """Undo ``squeeze``. More than ``most`` bytes are an error, found before they are allocated."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:
            raise FormatError(f"{name}: expected at most {most} bytes, its header says {size}")
        if not size:  # zstandard would not look at what follows an empty frame
            return _expand_empty(data, name)
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{name}: damaged: {error}") from error


def _expand_empty(data: bytes, name: str) -> bytes:
    """Return no bytes, after a check that the data are one frame of none."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    content = frame.decompress(data)
    if content or not frame.eof or frame.unused_data:
        raise FormatError(f"{name}: damaged: expected one empty frame, found more")
    return content
