"""Files that are whole or not there."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from octavo._io import write_atomically


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [str, Path])
def test_the_file_is_what_was_written_and_nothing_else_is_left(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(kind(path), lambda file: file.write(b"one"))
    assert path.read_bytes() == b"one"
    write_atomically(kind(path), lambda file: file.write(b"2"))
    assert path.read_bytes() == b"2"
    assert names(tmp_path) == ["a.bin"]


def test_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x" / "y" / "a.bin", lambda file: file.write(b"1"))
    assert (tmp_path / "x" / "y" / "a.bin").read_bytes() == b"1"


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, KeyboardInterrupt, SystemExit])
def test_a_writer_that_fails_leaves_what_was_there(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the new")
        file.flush()
        raise error("inside")

    with pytest.raises(error, match="inside"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    with pytest.raises(error, match="inside"):
        write_atomically(tmp_path / "new.bin", fail)
    assert names(tmp_path) == ["a.bin"]


def test_while_it_is_written_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    seen = []

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())
        assert (
            len(names(tmp_path)) == 2
        )  # in the same folder, so that the last step is one of the file system's

    write_atomically(path, write)
    assert (seen, path.read_bytes()) == ([b"old"], b"new")


def test_a_disk_that_fails_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_it_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a.bin", []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        events.append(("sync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        events.append(("replace", self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomically(path, lambda file: file.write(b"12345"))
    assert events[:2] == [("sync", 5), ("replace", 5)]


@pytest.mark.usefixtures("umask")
def test_others_may_read_it_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.umask(0o027) == 0o027  # and it is as it was


def test_a_folder_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", lambda file: file.write(b"1"))
    assert names(tmp_path) == ["folder"]


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = [bytes([n]) * 4096 for n in range(8)]
    threads = [
        threading.Thread(target=write_atomically, args=(path, lambda file, c=c: file.write(c)))
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["a.bin"]
