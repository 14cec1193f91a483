"""The file of a search by itself; what a search makes of it is tested with the search."""

import json
from pathlib import Path

import pytest

from octavo.dnq.journal import Journal
from octavo.errors import RecipeError

SETTINGS = {"options": [(2, 3), (2, 3)], "own_score": False}


def test_scores_are_lines_that_another_journal_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    one = Journal(path, SETTINGS)
    one.add([(2, None), (3, 3)], [-0.1, -1e-30])
    one.add([(2, 2)], [-0.3])
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"settings": {"options": [[2, 3], [2, 3]], "own_score": False}},
        {"bits": [2, None], "score": -0.1},
        {"bits": [3, 3], "score": -1e-30},
        {"bits": [2, 2], "score": -0.3},
    ]
    other = Journal(path, SETTINGS)
    for journal in (one, other):
        assert [journal.known(choice) for choice in [(2, None), (3, 3), (2, 2), (2, 3)]] == [
            -0.1,
            -1e-30,
            -0.3,
            None,
        ]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, SETTINGS)
    journal.add([(2, 2)], [-0.3])
    assert journal.known((2, 2)) == -0.3
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, SETTINGS)
    with pytest.raises(
        RecipeError,
        match=r"journal of a search with own_score False, this one has True: name another$",
    ):
        Journal(path, SETTINGS | {"own_score": True})
