"""Files that are either whole or not there, and plain data as strict JSON."""

import errno
import json
import math
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

__all__ = [
    "check_folder_of",
    "check_output",
    "finite",
    "json_text",
    "remove_leftovers",
    "sync_folder",
    "write_atomically",
]


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a new file, which then takes the place of ``path``.

    Under ``path`` there is the whole file or what was there before, even if the process is killed
    or the power fails. A symbolic link stays one: the file that it leads to is replaced. The new
    file has the mode and the owner of the old one.

    Raises:
        OSError: ``path`` is no regular file, is read-only, has further names (hard links), which
            would keep the old content, or belongs to another user; or the file system failed. The
            error has the path; what was there before is still there.

    """
    target = Path(os.path.realpath(path))
    try:
        there = _replaceable(Path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".tmp", f".{target.name[:50]}.", target.parent)
    except OSError as error:
        raise _about(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            _like(there, file.fileno())
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise _about(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names of the files in a folder to the disk, where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to but not read, or Windows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of :func:`write_atomically` from a folder, which a process that
    was killed leaves behind; call it while no other process writes there.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _replaceable(path: Path) -> os.stat_result | None:
    """Return what is known of the file at a path, which may be replaced; None if there is none."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(
            errno.EISDIR, "expected a file to write, or nothing yet; it is a folder"
        )
    if not stat.S_ISREG(there.st_mode):
        raise OSError(
            errno.EINVAL,
            "expected a regular file to write, or nothing yet; it is a device or a pipe",
        )
    if not there.st_mode & 0o222 or not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only; make it writable or name another")
    if there.st_nlink > 1:
        raise OSError(
            errno.EMLINK,
            "it has other names (hard links), which would keep the old content; delete this one",
        )
    return there


def _like(there: os.stat_result | None, handle: int) -> None:
    """Give a new file the owner and the mode of the one that it will replace, or else the usual
    mode. Windows has no modes before Python 3.13, and there the folder decides who may read.
    """
    if not hasattr(os, "fchmod"):
        return
    if there is None:
        os.fchmod(handle, 0o666 & ~_umask())
        return
    new = os.fstat(handle)
    if (there.st_uid, there.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(handle, there.st_uid, there.st_gid)  # ahead of the mode, of which it clears bits
    os.fchmod(handle, stat.S_IMODE(there.st_mode))


def _about(path: str | Path, error: OSError) -> OSError:
    """Return the error of a system call with the path that was to be written."""
    if error.errno is None or error.filename == str(path):
        return error
    return OSError(error.errno, error.strerror, str(path))  # becomes the kind of its number


def check_output(path: str | Path) -> None:
    """Make sure that a file can be put where a user wants it; call it before the work begins.

    Raises:
        FileNotFoundError: its folder does not exist.
        OSError: what is there cannot be replaced, as for :func:`write_atomically`.

    """
    check_folder_of(path)
    try:
        _replaceable(Path(path))
    except OSError as error:
        raise _about(path, error) from error


def check_folder_of(path: str | Path) -> None:
    """Make sure that the folder exists in which a user wants a file or a folder.

    Raises:
        FileNotFoundError: it does not exist. A folder that is made in silence hides a misspelt one.
        PermissionError: nothing can be written into it.

    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path}: the folder {folder} does not exist; make it first: "
            f"mkdir -p {shlex.quote(str(folder))}"
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "its folder is read-only; name another", str(path))


def json_text(content: Any, *, indent: int | None = None) -> str:
    """Return plain data as strict JSON.

    A number that is not finite becomes null, because JSON has none: other readers than Python's
    refuse ``NaN``.

    Args:
        content: the data.
        indent: spaces of each level; None: all on one line.

    """
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Return plain data with None for each number that is not finite; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def _umask() -> int:
    """Return the process's mask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
