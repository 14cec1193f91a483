"""The kind of a file, told by its first bytes: people name files as they like."""

from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["FileKind", "kind_of", "kind_of_file"]

FileKind: TypeAlias = Literal["safetensors", "onnx", "other"]

FIRST = 9  # bytes that tell the kinds apart
LONGEST = 1 << 32  # of a safetensors header; eight characters of a text are a larger number


def kind_of(data: bytes) -> FileKind:
    """Tell the kind of a file by its content, or by the beginning of that."""
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < LONGEST:
        return "safetensors"
    if data[:1] == b"\x08" and data[2:3] == b"\x12":  # protobuf: ir_version, producer_name
        return "onnx"
    return "other"


def kind_of_file(path: str | Path) -> FileKind | None:
    """Tell the kind of the file at a path; None if there is no file."""
    if not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return kind_of(file.read(FIRST))
