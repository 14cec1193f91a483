"""The journal of a search: one JSON line a trial, appended as it is measured, so that a search that
was killed goes on.

A search is deterministic given its objectives. So resuming is running it again while the journal
answers for what was measured before.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.dnq.space import Action, Partial
from octavo.errors import FormatError, RecipeError, brief

__all__ = ["Journal"]


class Journal:
    """The objectives of choices, in memory, and in a file where there is a path.

    Args:
        path: the file; None keeps the objectives in memory only.
        actions: the actions of each layer; a line has the actions of a choice, not their indices.
        settings: everything that the objectives depend on, as the first line of the file has it.

    Raises:
        RecipeError: the file is the journal of a search with other settings.
        FormatError: the file is damaged before its last line; a last line that was cut off is
            dropped.

    """

    def __init__(
        self,
        path: Path | None,
        actions: Sequence[Sequence[Action]],
        settings: Mapping[str, Any],
    ) -> None:
        self._path = path
        self._actions = actions
        self._known: dict[Partial, float] = {}
        if path is not None:
            self._open(path, settings)

    def __contains__(self, choice: Partial) -> bool:
        return choice in self._known

    def __getitem__(self, choice: Partial) -> float:
        return self._known[choice]

    def add(self, choices: Sequence[Partial], objectives: Sequence[float]) -> None:
        """Note the objectives of choices; those that it knows stay as they are."""
        new = [pair for pair in zip(choices, objectives, strict=True) if pair[0] not in self]
        self._known |= dict(new)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                for choice, objective in new:
                    line = {"bits": self._written(choice), "score": objective}
                    file.write(json.dumps(line, allow_nan=False) + "\n")

    def _open(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin a file, or read the one that is there."""
        begun = json.dumps({"settings": settings}, allow_nan=False) + "\n"
        lines = _lines(path)
        whole = [line for line in lines if line.endswith("\n")]
        if not whole and begun.startswith("".join(lines)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(begun, encoding="utf-8")
            return
        whole = whole or lines  # a file without any line is not ours: reading it says so
        self._check_head(path, whole[0], json.loads(begun)["settings"])
        for number, line in enumerate(whole[1:], 2):
            self._read(path, number, line)
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")

    def _check_head(self, path: Path, line: str, settings: Mapping[str, Any]) -> None:
        """Raise unless the first line has these settings."""
        try:
            there = dict(json.loads(line)["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, 1, error) from error
        for key, value in settings.items():
            if there.get(key) != value:
                raise RecipeError(
                    f"{path}: the journal of a search with {key} {there.get(key)!r}, "
                    f"this one has {value!r}: name another"
                )

    def _read(self, path: Path, number: int, line: str) -> None:
        """Read one line, and note its objective."""
        try:
            content = json.loads(line)
            pairs = zip(self._actions, content["bits"], strict=True)
            choice = tuple(
                None if value is None else actions.index(Action.parse(value))
                for actions, value in pairs
            )
            self._known[choice] = float(content["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, number, error) from error

    def _written(self, choice: Partial) -> list[int | str | None]:
        """Return the actions of a choice as a line has them."""
        return [
            None if index is None else actions[index].written()
            for actions, index in zip(self._actions, choice, strict=True)
        ]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: expected the journal of a search: {brief(error)}") from error


def _damaged(path: Path, number: int, error: Exception) -> FormatError:
    return FormatError(f"{path}, line {number}: expected a trial of a search: {brief(error)}")
