"""The file of a search by itself; what a search makes of it is tested with the search."""

import errno
import json
import math
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from octavo.dnq import journal as journals
from octavo.dnq.journal import Journal, held
from octavo.dnq.space import Action
from octavo.errors import FormatError, RecipeError
from octavo.formats.width import Apot
from octavo.progress import Event
from octavo.storage.checksum import sealed


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # none is tested: faster


ACTIONS = (tuple(map(Action.parse, (2, 3))),) * 2
SETTINGS = {"options": [(2, 3), (2, 3)], "own_score": False}


def test_scores_are_lines_that_another_journal_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    one = Journal(path, ACTIONS, SETTINGS)
    one.add([(0, None), (1, 1)], [-0.1, -1e-30])
    one.add([(0, 0), (1, 1)], [-0.3, -9.0])  # the second is known
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(sealed(line) == line for line in lines)
    assert [{key: line[key] for key in line if key != "checksum"} for line in lines] == [
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
        match=r"a search with own_score False, this one has True: name another, or delete it$",
    ):
        Journal(path, ACTIONS, SETTINGS | {"own_score": True})


def test_a_setting_that_only_one_of_two_searches_has_differs_too(tmp_path: Path) -> None:
    """``absorb`` and ``rate`` are in a journal only where they are on."""
    Journal(tmp_path / "with", ACTIONS, SETTINGS | {"rate": 1.0})
    with pytest.raises(RecipeError, match=r"rate 1.0, this one has None"):
        Journal(tmp_path / "with", ACTIONS, SETTINGS)
    Journal(tmp_path / "without", ACTIONS, SETTINGS)
    with pytest.raises(RecipeError, match=r"rate None, this one has 1.0"):
        Journal(tmp_path / "without", ACTIONS, SETTINGS | {"rate": 1.0})


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


@pytest.mark.parametrize("old", [True, False])
@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20) | JSON.map(json.dumps) | TRIALS.map(json.dumps))
def test_a_line_is_read_or_refused_and_the_file_is_not_touched(old: bool, line: str) -> None:
    """Lines without a checksum are read in a journal of an earlier version only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        if old:
            path.write_text(json.dumps({"settings": SETTINGS}) + "\n", encoding="utf-8")
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
            assert old
            content = json.loads(line)
            chosen = tuple(None if b is None else (2, 3).index(int(b)) for b in content["bits"])
            assert journal[chosen] == float(content["score"])
        assert path.read_bytes() == before


@settings(max_examples=60, deadline=None)
@given(TRIALS | JSON.filter(lambda value: isinstance(value, dict)))
def test_a_sealed_line_is_read_where_it_makes_sense(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        Journal(path, ACTIONS, SETTINGS)
        with path.open("a") as file:
            file.write(json.dumps(sealed(content)) + "\n")
        score: Any = content.get("score")
        number = isinstance(score, int | float) and not isinstance(score, bool)
        finite = number and math.isfinite(score)
        bits: Any = content.get("bits")
        known = isinstance(bits, list) and all(b in (2, 3, None) or b == "3" for b in bits)
        if set(content) == {"bits", "score"} and finite and known and len(bits) == 2:
            assert True not in bits
            Journal(path, ACTIONS, SETTINGS)
        else:
            with pytest.raises(FormatError, match=r"journal, line 2: expected a trial of a search"):
                Journal(path, ACTIONS, SETTINGS)


def written(path: Path) -> bytes:
    journal = Journal(path, ACTIONS, SETTINGS)
    journal.add([(0, 0), (0, 1), (1, 0)], [-0.5, -0.25, -0.125])
    return path.read_bytes()


def test_no_bit_of_a_journal_changes_a_score_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    sound = [(0, 0), (0, 1), (1, 0)]
    generator = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            journal = Journal(path, ACTIONS, SETTINGS)
        except (FormatError, RecipeError):
            continue
        scores = dict(zip(sound, [-0.5, -0.25, -0.125], strict=True))
        assert all(journal[choice] == scores[choice] for choice in sound if choice in journal)
        assert sum(choice in journal for choice in sound) >= 2  # the last line may seem cut off


def test_a_line_that_was_cut_off_is_dropped_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    last = whole[:-1].rindex(b"\n") + 1
    for length in range(last + 1, len(whole)):
        path.write_bytes(whole[:length])
        seen: list[Event] = []
        journal = Journal(path, ACTIONS, SETTINGS, seen.append)
        assert (1, 0) not in journal
        assert path.read_bytes() == whole[:last]
        said = f"{path}: its last line was cut off; it is dropped, and measured again"
        known = whole[:last].count(b"\n") - 1  # all lines but the head
        going_on = f"search: {known} measurements are done, from {path}; going on"
        assert seen == [Event("note", message=text) for text in (said, going_on)[: 1 + (known > 0)]]


@pytest.mark.parametrize(
    "line",
    [
        '{"bits": [2, 3], "score": NaN}',
        '{"bits": [2, 3], "score": -Infinity}',
        '{"bits": [2, 3], "score": 1e999}',
        '{"bits": [2, 3], "score": ' + "9" * 400 + "}",
        '{"bits": [2, 3], "score": ' + "9" * 5000 + "}",
        '{"bits": [2, 3], "score": true}',
        '{"bits": [2, 3], "score": "-0.5"}',
        '{"bits": [[2], 3], "score": -0.5}',
        '{"bits": [{"a": 1}, 3], "score": -0.5}',
        '{"bits": "23", "score": -0.5}',
        '{"bits": [2, 3, 3], "score": -0.5}',
        '{"bits": [2, 3], "score": -0.5, "more": 1}',
        "[" * 100_000,
        '{"bits": [2, "' + "3" * 300_000 + '"], "score": -0.5}',
    ],
    ids=range(14),
)
def test_values_that_no_search_wrote_are_refused_in_old_journals_too(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "LONGEST", 200_000)
    path = tmp_path / "journal"
    path.write_text(json.dumps({"settings": SETTINGS}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(
        FormatError, match=r"journal, line 2: expected a trial of a search"
    ) as caught:
        Journal(path, ACTIONS, SETTINGS)
    assert len(str(caught.value)) < 400


def test_a_journal_of_an_earlier_version_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = [{"settings": SETTINGS}, {"bits": [2, None], "score": -0.1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    Journal(path, ACTIONS, SETTINGS).add([(1, 1)], [-0.2])
    again = Journal(path, ACTIONS, SETTINGS)
    assert (again[0, None], again[1, 1]) == (-0.1, -0.2)


@pytest.mark.parametrize("written_first", [0, 7])
def test_a_full_disk_loses_nothing_and_names_the_journal(
    written_first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    journal = Journal(path, ACTIONS, SETTINGS)
    write = os.write
    room = [written_first]

    def full(handle: int, data: bytes) -> int:
        some = data[: room[0]]
        room[0] = 0
        if not some:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, some)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=rf"No space left on device.*{path}"):
        journal.add([(1, 1)], [-0.7])
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert (1, 1) not in journal
    journal.add([(1, 1)], [-0.7])
    assert Journal(path, ACTIONS, SETTINGS)[1, 1] == -0.7


def test_one_process_at_a_time_writes_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal"
    with (
        held(path),
        pytest.raises(RecipeError, match=rf"^{path}: another process works on this journal now"),
        held(path),
    ):
        pass
    with held(path):
        written(path)
    with held(path):
        assert Journal(path, ACTIONS, SETTINGS)[0, 0] == -0.5
    with held(None):
        pass


def test_a_journal_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(RecipeError, match=r"expected a file for the journal"), held(path):
            pass


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=30)
    | st.sampled_from([b"my notes", b"my notes\n", b"PK\x03\x04\xff\xfe\n", b"\xff", b"\n"])
    | JSON.map(lambda value: json.dumps(value).encode() + b"\n")
)
def test_a_file_that_is_no_journal_is_refused_and_not_touched(content: bytes) -> None:
    begun = json.dumps(sealed({"settings": SETTINGS})).encode() + b"\n"
    assume(not begun.startswith(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(content)
        with pytest.raises((FormatError, RecipeError)) as error:
            Journal(path, ACTIONS, SETTINGS)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == content
