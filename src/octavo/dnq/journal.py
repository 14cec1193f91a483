"""The journal of a search: one JSON line a trial, appended as it is measured, so that a search that
was killed goes on.

A search is deterministic given its objectives. So resuming is running it again while the journal
answers for what was measured before.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo._locks import locked
from octavo.dnq.space import Action, Partial
from octavo.errors import FormatError, RecipeError, brief
from octavo.progress import Event, Progress, silent
from octavo.storage.checksum import KEY, check, sealed

__all__ = ["Journal", "held"]

LONGEST = 1 << 24  # characters of a line: the first has the name of each layer
# The errors of reading a line that is damaged.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@contextlib.contextmanager
def held(path: str | Path | None) -> Iterator[None]:
    """Keep other processes away from a journal for a while; it is made where it is missing.

    Raises:
        RecipeError: another process writes it, or it is no file.

    """
    if path is None:
        yield
        return
    path = Path(path)
    if path.exists() and not path.is_file():
        raise RecipeError(f"{path}: expected a file for the journal, or nothing yet")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    with locked(path, "this journal"):
        yield


class Journal:
    """The objectives of choices, in memory, and in a file where there is a path.

    Each line has a checksum, but for journals of earlier versions.

    Args:
        path: the file; None keeps the objectives in memory only.
        actions: the actions of each layer; a line has the actions of a choice, not their indices.
        settings: everything that the objectives depend on, as the first line of the file has it.
        progress: called with a note that says how much the file knows, and with one if its last
            line was cut off; that line is dropped.

    Raises:
        RecipeError: the file is the journal of a search with other settings.
        FormatError: the file is damaged before its last line.

    """

    def __init__(
        self,
        path: Path | None,
        actions: Sequence[Sequence[Action]],
        settings: Mapping[str, Any],
        progress: Progress = silent,
    ) -> None:
        self._path = path
        self._actions = actions
        self._known: dict[Partial, float] = {}
        if path is not None:
            self._open(path, settings, progress)

    def __contains__(self, choice: Partial) -> bool:
        return choice in self._known

    def __getitem__(self, choice: Partial) -> float:
        return self._known[choice]

    def add(self, choices: Sequence[Partial], objectives: Sequence[float]) -> None:
        """Note the objectives of choices; those that it knows stay as they are.

        Raises:
            OSError: they cannot be written; the file is as it was.

        """
        new = [pair for pair in zip(choices, objectives, strict=True) if pair[0] not in self]
        if self._path is not None and new:
            lines = [
                _line({"bits": self._written(choice), "score": score}) for choice, score in new
            ]
            _append(self._path, "".join(lines))
        self._known |= dict(new)

    def _open(self, path: Path, settings: Mapping[str, Any], progress: Progress) -> None:
        """Begin a file, or read the one that is there."""
        begun = _line({"settings": settings})
        text = _text(path)
        whole = text[: text.rfind("\n") + 1]
        if not whole and begun.startswith(text):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(begun, encoding="utf-8")
            return
        first, *others = (whole or text).removesuffix("\n").split("\n")  # without any, not ours
        old = self._check_head(path, first, json.loads(begun)["settings"])
        for number, line in enumerate(others, 2):
            self._read(path, number, line, old=old)
        if len(whole) < len(text):
            os.truncate(path, len(whole.encode()))
            cut = f"{path}: its last line was cut off; it is dropped, and measured again"
            progress(Event("note", message=cut))
        if self._known:
            known = f"search: {len(self._known)} measurements are done, from {path}; going on"
            progress(Event("note", message=known))

    def _check_head(self, path: Path, line: str, settings: Mapping[str, Any]) -> bool:
        """Raise unless the first line has these settings; tell if it is of an earlier version."""
        try:
            content = _content(line, {"settings": dict}, old=True)
        except DAMAGE as error:
            raise _damaged(path, 1, error) from error
        there = content["settings"]
        for key in {**settings, **there}:  # a setting that only one of them has differs too
            if there.get(key) != settings.get(key):
                raise RecipeError(
                    f"{path}: the journal of a search with {key} {there.get(key)!r}, "
                    f"this one has {settings.get(key)!r}: name another, or delete it"
                )
        return KEY not in content

    def _read(self, path: Path, number: int, line: str, *, old: bool) -> None:
        """Read one line, and note its objective."""
        try:
            content = _content(line, {"bits": list, "score": (int, float)}, old=old)
            pairs = zip(self._actions, content["bits"], strict=True)
            choice = tuple(
                None if value is None else actions.index(Action.parse(value))
                for actions, value in pairs
            )
            score = float(content["score"])
            if not math.isfinite(score):
                raise ValueError(f"expected a finite score, got {score}")
            self._known[choice] = score
        except DAMAGE as error:
            raise _damaged(path, number, error) from error

    def _written(self, choice: Partial) -> list[int | str | None]:
        """Return the actions of a choice as a line has them."""
        return [
            None if index is None else actions[index].written()
            for actions, index in zip(self._actions, choice, strict=True)
        ]


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(sealed(content), allow_nan=False) + "\n"


def _content(line: str, schema: Mapping[str, Any], *, old: bool) -> dict[str, Any]:
    """Return the content of a line, after a check that it has just these keys.

    Raises:
        ValueError: it is damaged; there may be other errors of ``DAMAGE``.

    """
    if len(line) > LONGEST:
        raise ValueError(f"expected at most {LONGEST} characters, got {len(line)}")
    content: dict[str, Any] = json.loads(line)
    check(content, schema, old=old)
    if unknown := sorted(set(content) - {*schema, KEY}):
        raise ValueError(f"unknown key {unknown[0]!r}")
    return content


def _text(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: expected the journal of a search: {brief(error)}") from error


def _append(path: Path, text: str) -> None:
    """Append to a file all of a text, or nothing if that fails; the error has the path."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _write(handle, text.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(handle: int, data: bytes) -> None:
    """Write data to the disk; a disk that becomes full takes a part of them first, which is taken
    back.
    """
    size = os.fstat(handle).st_size
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, size)
        raise


def _damaged(path: Path, number: int, error: Exception) -> FormatError:
    return FormatError(f"{path}, line {number}: expected a trial of a search: {brief(error)}")
