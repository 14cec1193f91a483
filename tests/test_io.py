"""Files that are whole or not there, and strict JSON."""

import ast
import json
import math
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import octavo
from octavo import _locks
from octavo._io import check_output, json_text, remove_leftovers, write_atomically
from octavo._locks import locked


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


def test_an_output_goes_into_a_folder_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a.bin", tmp_path / "a.bin", "./a.bin"):
        check_output(path)
    (tmp_path / "file").touch()
    for path in ("no/a.bin", tmp_path / "no" / "a.bin", "file/a.bin"):
        with pytest.raises(FileNotFoundError, match=r"does not exist; make it first: mkdir -p "):
            check_output(path)
    assert names(tmp_path) == ["file"]


def test_an_output_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_output(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mkdir -p '.*no folder'$"):
        check_output(tmp_path / "no folder" / "a.bin")
    (tmp_path / "old").touch(mode=0o444)
    with pytest.raises(PermissionError, match="it is read-only"):
        check_output(tmp_path / "old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root, every folder is open
    with pytest.raises(PermissionError, match="its folder is read-only"):
        check_output(tmp_path / "new")


# JSON.


def test_json_has_no_number_that_is_not_finite() -> None:
    content = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": "NaN", "e": True}}
    text = json_text(content)
    assert text == '{"a": [null, [1.5, null]], "b": {"c": null, "d": "NaN", "e": true}}'
    assert json.loads(json_text(content, indent=2)) == json.loads(text)


def test_json_is_strict_everywhere() -> None:
    """Each place that writes JSON says that a number which is not finite is an error."""
    lax = []
    for path in Path(octavo.__file__).parent.rglob("*.py"):
        if path.name == "digest.py":  # it writes none: it only hashes values as text
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                strict = {ast.unparse(word) for word in node.keywords} & {"allow_nan=False"}
                lax += [] if strict else [f"{path.name}:{node.lineno}"]
    assert lax == []


# What stands at the target.


def save(path: Path, content: bytes = b"new") -> None:
    write_atomically(path, lambda file: file.write(content))


def test_a_symbolic_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "a.bin"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to("far/a.bin")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    save(tmp_path / "chain")
    assert target.read_bytes() == b"new"
    assert (tmp_path / "chain").readlink() == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to("far/b.bin")  # names what shall be there
    save(tmp_path / "dangling")
    assert (tmp_path / "far" / "b.bin").read_bytes() == b"new"
    assert names(tmp_path / "far") == ["a.bin", "b.bin"]


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=f"{tmp_path / 'a'}"):
        save(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


def test_a_pipe_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        with pytest.raises(OSError, match=f"expected a regular file.*{name}"):
            save(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert names(tmp_path) == ["null", "pipe"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_the_mode_stays(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(mode)
    save(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


def test_a_read_only_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=f"read-only.*{path}"):
        save(path)
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["a.bin"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    os.chown(path, 1234, 5678)
    save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


def test_a_file_of_another_user_is_left_to_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    fstat = os.fstat

    def other(handle: int) -> os.stat_result:
        values = list(fstat(handle))
        values[4] += 1  # the new file is another user's than the one that is there
        return os.stat_result(values)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fstat", other)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(PermissionError, match=f"not permitted.*{path}"):
        save(path)
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["a.bin"])


def test_a_file_with_two_names_is_not_torn_from_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    os.link(path, tmp_path / "other")
    with pytest.raises(OSError, match=f"hard links.*{path}"):
        save(path)
    path.unlink()
    save(path)
    assert ((tmp_path / "other").read_bytes(), path.read_bytes()) == (b"old", b"new")


def test_the_folder_is_on_the_disk_after_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, (tmp_path / "a.bin").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    save(tmp_path / "a.bin")
    assert synced[-1] == (tmp_path.stat().st_ino, True)
    assert synced[0][1] is False


def test_a_file_system_that_cannot_sync_folders_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_a_system_without_modes_and_open_folders_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows before Python 3.13: it has no ``fchmod``, and opens no folder."""
    opened = os.open

    def refuse(path: str | Path, *rest: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    monkeypatch.delattr(os, "fchmod")
    monkeypatch.delattr(os, "fchown")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(_locks, "fcntl", None)
    with locked(tmp_path, "this run"):
        for _ in range(2):  # a new file, and one that is there
            save(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("number", [16, 18, 116])  # busy, another device, a stale NFS handle
def test_a_rename_that_fails_names_the_path_and_loses_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "temporary", None, "target")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match=str(path)) as caught:
        save(path)
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["a.bin"])


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / ("x" * 250))
    assert names(tmp_path) == ["x" * 250]


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    def killed(_: IO[bytes]) -> None:
        (left,) = tmp_path.iterdir()
        (tmp_path / f"{left.name[:-8]}copy.tmp").write_bytes(left.read_bytes())

    write_atomically(tmp_path / "a.bin", killed)
    (tmp_path / ".hidden").write_bytes(b"of the user")
    assert len(names(tmp_path)) == 3
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "a.bin"]
