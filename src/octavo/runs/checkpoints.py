"""The files of a run's state: what a step has reached, with a checksum that is compared first."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from octavo._io import write_atomically
from octavo.errors import FormatError, RecipeError, brief
from octavo.storage.checksum import check, sealed

__all__ = ["Schema", "check_finite", "read_checkpoint", "refusing", "write_checkpoint"]

Schema = Mapping[str, type | tuple[type, ...]]


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write state, a mapping of plain values and tensors, whole or not at all.

    Raises:
        OSError: it cannot be written; the error has the path.

    """

    def write(file: IO[bytes]) -> None:
        noting = _Noting(file)
        try:
            torch.save(sealed(content), noting)  # type: ignore[arg-type]
        except RuntimeError:
            if noting.error is None:
                raise
            raise noting.error from None

    write_atomically(path, write)


class _Noting:
    """A file that notes the error of a write: torch turns it into another one, which says nothing.

    Attributes:
        error: the error.

    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_checkpoint(path: Path, schema: Schema, digest: str) -> dict[str, Any]:
    """Read state that :func:`write_checkpoint` wrote; call it within :func:`refusing`.

    Args:
        path: the file.
        schema: the keys that it has, and the types of their values.
        digest: the weights that the state must belong to, as its key ``digest`` names them.

    Raises:
        ValueError: it is damaged, or has no checksum.
        RecipeError: the state of a network with other weights.

    """
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    check(content, {**schema, "digest": str}, old=False)
    if content["digest"] != digest:
        raise RecipeError("the task's weights have changed since")
    return content


@contextlib.contextmanager
def refusing(path: Path, expected: str, remedy: str) -> Iterator[None]:
    """Turn every error of reading a file, and of putting its content to use, into one FormatError.

    Args:
        path: the file.
        expected: what it should have had.
        remedy: what to do.

    """
    try:
        yield
    except Exception as error:  # a damaged file may lead to any
        raise FormatError(
            f"{path}: expected {expected} of this task's network, got a file that is damaged or of "
            f"another network ({brief(error)}); {remedy}"
        ) from error


def check_finite(model: nn.Module) -> None:
    """Raise ValueError unless every parameter is finite."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"{name} has numbers that are not finite")
