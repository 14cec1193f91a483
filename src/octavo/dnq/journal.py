"""The journal of a search: one JSON line a trial, appended as it is scored, so that a search that
was killed goes on.

A search is deterministic given its scores. So resuming is running it again while the journal
answers for what was scored.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.dnq.environment import Partial
from octavo.dnq.widths import read_option, write_option
from octavo.errors import FormatError, RecipeError, brief

__all__ = ["Journal"]


class Journal:
    """Scores by choice; in memory, and in a file where there is a path.

    Args:
        path: of the file; None keeps the scores in memory only.
        settings: what the scores depend on; a file of other settings is refused.

    Raises:
        RecipeError: the file is the journal of another search.
        FormatError: the file is damaged before its last line; a last line that was cut off is
            dropped.

    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._known: dict[tuple[int | None, ...], float] = {}
        if path is None:
            return
        head = json.dumps({"settings": settings}) + "\n"
        try:
            lines = (
                path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            )
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}: expected the journal of a search: {brief(error)}"
            ) from error
        whole = [line for line in lines if line.endswith("\n")]
        if not whole and head.startswith("".join(lines)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head, encoding="utf-8")
            return
        whole = whole or lines  # not ours
        self._read(whole, json.loads(json.dumps(settings)))
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")

    def known(self, choice: Partial) -> float | None:
        """The score of a choice if it was scored before."""
        return self._known.get(tuple(choice))

    def add(self, choices: Sequence[Partial], scores: Sequence[float]) -> None:
        """Note down scores."""
        self._known |= {tuple(choice): score for choice, score in zip(choices, scores, strict=True)}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                for choice, score in zip(choices, scores, strict=True):
                    bits = [None if width is None else write_option(width) for width in choice]
                    file.write(json.dumps({"bits": bits, "score": score}) + "\n")

    def _read(self, lines: Sequence[str], settings: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                if number == 1:
                    there = dict(content["settings"])
                else:
                    bits = tuple(
                        None if width is None else read_option(width) for width in content["bits"]
                    )
                    self._known[bits] = float(content["score"])
            except (ValueError, KeyError, TypeError) as error:
                raise FormatError(
                    f"{self._path}, line {number}: expected a trial of a search: {brief(error)}"
                ) from error
        for key, value in settings.items():
            if there.get(key) != value:
                raise RecipeError(
                    f"{self._path}: the journal of a search with {key} {there.get(key)!r}, this one has {value!r}: name another"
                )
