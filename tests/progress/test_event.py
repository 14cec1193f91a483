"""The event that every chapter reports, and the callback of a caller who gave none."""

from dataclasses import FrozenInstanceError

import pytest

from octavo.progress import Event, Progress, silent


def test_an_event_is_a_value() -> None:
    event = Event("search", 3, 10, detail="trial")
    assert event == Event("search", done=3, total=10, message="", detail="trial")
    with pytest.raises(FrozenInstanceError):
        event.done = 4  # type: ignore[misc]


def test_only_the_phase_must_be_given() -> None:
    event = Event("note", message="nothing is pruned")
    assert (event.done, event.total, event.detail) == (0, 0, None)
    assert event.message == "nothing is pruned"


def test_silence_takes_any_event() -> None:
    progress: Progress = silent
    for event in (Event("note"), Event("search", 1, 2, "text", object())):
        assert progress(event) is None  # type: ignore[func-returns-value]
