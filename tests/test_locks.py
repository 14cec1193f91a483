"""Locks between processes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import _locks
from octavo._locks import locked
from octavo.errors import RecipeError

HOLD = """
import sys, time
from pathlib import Path
from octavo._locks import locked
with locked(Path(sys.argv[1]), "this run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_second_holder_is_refused_and_a_later_one_is_not(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir() if kind == "folder" else path.write_text("content")
    with locked(path, "this run"):
        said = (
            rf"^{path}: another process works on this run now; wait until it ends, or name another "
            "path$"
        )
        with pytest.raises(RecipeError, match=said), locked(path, "this run"):
            pass
    with locked(path, "this run"):
        pass
    assert list(tmp_path.iterdir()) == [path]  # a lock is no file


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RecipeError), locked(tmp_path, "this run"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path, "this run"):
            pass


def test_errors_inside_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="mine"), locked(tmp_path, "this run"):
        raise BlockingIOError(errno.EWOULDBLOCK, "mine")


def test_a_file_system_without_locks_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("octavo._locks.fcntl.flock", refuse)
    with locked(tmp_path, "this run"):
        pass
    monkeypatch.setattr(_locks, "fcntl", None)  # a system without them
    with locked(tmp_path, "this run"):
        pass
