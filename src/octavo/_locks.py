"""Locks of files and folders between processes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from octavo.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: Path, whose: str) -> Iterator[None]:
    """Keep other processes away from a file or folder for a while.

    The kernel holds the lock and drops it when the process ends, however it ends. There is no lock
    where the system or the file system has none.

    Args:
        path: a file or folder that exists; nothing in it is changed.
        whose: what the process works on, for the message: ``"this run"``.

    Raises:
        RecipeError: another process holds the lock.

    """
    if fcntl is None:  # Windows, which opens no folder either
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        if not _lock(handle):
            raise RecipeError(
                f"{path}: another process works on {whose} now; wait until it ends, or name "
                "another path"
            )
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file; return False if another process holds the lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, such as some that are mounted over a network
        return True
    return True
