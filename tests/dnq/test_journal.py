"""The file of a search by itself; what a search makes of it is tested with the search."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from octavo.dnq.journal import Journal
from octavo.dnq.space import Action
from octavo.errors import FormatError, RecipeError
from octavo.formats.width import Apot

ACTIONS = (tuple(map(Action.parse, (2, 3))),) * 2
SETTINGS = {"options": [(2, 3), (2, 3)], "own_score": False}


def test_scores_are_lines_that_another_journal_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    one = Journal(path, ACTIONS, SETTINGS)
    one.add([(0, None), (1, 1)], [-0.1, -1e-30])
    one.add([(0, 0), (1, 1)], [-0.3, -9.0])  # the second is known
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"settings": {"options": [[2, 3], [2, 3]], "own_score": False}},
        {"bits": [2, None], "score": -0.1},
        {"bits": [3, 3], "score": -1e-30},
        {"bits": [2, 2], "score": -0.3},
    ]
    other = Journal(path, ACTIONS, SETTINGS)
    for journal in (one, other):
        known = [journal[choice] for choice in [(0, None), (1, 1), (0, 0)]]
        assert known == [-0.1, -1e-30, -0.3]
        assert (0, 1) not in journal


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, ACTIONS, SETTINGS)
    journal.add([(0, 0)], [-0.3])
    assert journal[0, 0] == -0.3
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, ACTIONS, SETTINGS)
    with pytest.raises(
        RecipeError,
        match=r"journal of a search with own_score False, this one has True: name another$",
    ):
        Journal(path, ACTIONS, SETTINGS | {"own_score": True})


def test_a_line_tells_codebooks_and_bits_of_inputs_apart(tmp_path: Path) -> None:
    texts = (5, "apot5", "5x4", "5x32")
    actions = (tuple(map(Action.parse, texts)),) * 2
    assert actions[0][1].width == Apot(5)
    journal = Journal(tmp_path / "j", actions, {})
    journal.add([(at, None) for at in range(4)], [1.0, 2.0, 3.0, 4.0])
    lines = (tmp_path / "j").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["bits"] for line in lines[1:]] == [[text, None] for text in texts]
    again = Journal(tmp_path / "j", actions, {})
    assert [again[at, None] for at in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert (0, 0) not in again


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bits", "score", "settings", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
TRIALS = st.fixed_dictionaries(
    {"bits": st.lists(st.sampled_from([2, 3, None, 4, "3", 2.0, True]), max_size=3)},
    optional={"score": JSON},
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20) | JSON.map(json.dumps) | TRIALS.map(json.dumps))
def test_a_line_is_read_or_refused_and_the_file_is_not_touched(line: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        Journal(path, ACTIONS, SETTINGS).add([(0, 0)], [-0.5])
        written = path.read_text(encoding="utf-8") + line + "\n"
        path.write_text(written, encoding="utf-8", newline="")
        before = path.read_bytes()
        message = ""
        try:
            journal = Journal(path, ACTIONS, SETTINGS)
        except FormatError as error:
            message = str(error)
        if message:
            assert re.search(r"journal, line \d+: expected a trial of a search", message)
            assert "\n" not in message
        else:
            content = json.loads(line)
            chosen = tuple(None if b is None else (2, 3).index(int(b)) for b in content["bits"])
            assert journal[chosen] == pytest.approx(float(content["score"]), nan_ok=True)
        assert path.read_bytes() == before


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=30)
    | st.sampled_from([b"my notes", b"my notes\n", b"PK\x03\x04\xff\xfe\n", b"\xff", b"\n"])
    | JSON.map(lambda value: json.dumps(value).encode() + b"\n")
)
def test_a_file_that_is_no_journal_is_refused_and_not_touched(content: bytes) -> None:
    begun = json.dumps({"settings": SETTINGS}).encode() + b"\n"
    assume(not begun.startswith(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(content)
        with pytest.raises((FormatError, RecipeError)) as error:
            Journal(path, ACTIONS, SETTINGS)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == content
