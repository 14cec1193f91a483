"""The argument progress: True, a callback, or None, wherever something takes long."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from octavo import Budget, Incremental, calibrate, compress, search
from octavo.progress import Event, showing, silent

MODEL = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
INPUTS = [torch.arange(80.0).view(16, 5).sin()]
PLAN = {"0": 3, "2": 4}
BUDGET = Budget(average_bits=4)

LONG: dict[str, Callable[[Any], Any]] = {
    "calibrate": lambda progress: calibrate(MODEL, PLAN, INPUTS, progress=progress),
    "search": lambda progress: search(MODEL, INPUTS, budget=BUDGET, progress=progress),
    "compress": lambda progress: compress(MODEL, INPUTS, budget=BUDGET, progress=progress),
    "Incremental": lambda progress: list(
        Incremental(copy.deepcopy(MODEL), PLAN, progress=progress)
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_true_shows_lines_on_stderr_where_there_is_no_terminal(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    LONG[name](True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") >= 1


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("nothing", [None, False])
def test_none_shows_nothing(name: str, nothing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    LONG[name](nothing)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", LONG)
def test_a_function_is_called_with_each_event(name: str) -> None:
    seen: list[Event] = []
    LONG[name](seen.append)
    assert len(seen) > 1
    assert all(isinstance(event, Event) for event in seen)


@pytest.mark.parametrize("name", LONG)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"^progress: expected True, None or a function of an event"
    ):
        LONG[name]("yes")


def test_a_callback_is_handed_on_as_it_is() -> None:
    def mine(event: Event) -> None:
        return

    with showing(mine) as callback:
        assert callback is mine
    with showing(None) as callback:
        assert callback is silent
