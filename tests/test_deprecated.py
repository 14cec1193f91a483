"""Old spellings: they work, they warn with the new name, and they are never mixed with it."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from octavo import calibrate
from octavo._deprecated import renamed_arguments, warn_renamed
from octavo.progress import Event


@renamed_arguments(score="objective", correct="", observe="progress")
def search(model: str, objective: Any = "default", progress: Any = None) -> tuple[str, Any, Any]:
    """Return the arguments."""
    return model, objective, progress


class Track:
    @renamed_arguments(top="max_exponent")
    def __init__(self, max_exponent: int) -> None:
        self.max_exponent = max_exponent


def test_an_old_argument_arrives_under_its_new_name() -> None:
    with pytest.warns(DeprecationWarning, match="deprecated") as caught:
        assert search("m", score=3) == ("m", 3, None)  # type: ignore[call-arg]
    (warning,) = caught
    assert str(warning.message) == (
        "search(score=) is deprecated and goes in the next version: use search(objective=)"
    )
    assert warning.filename == __file__  # the caller's line, not octavo's


def test_new_arguments_do_not_warn() -> None:
    assert search("m", objective=3) == ("m", 3, None)
    assert search("m", 4) == ("m", 4, None)


def test_an_argument_without_effect_is_dropped() -> None:
    with pytest.warns(DeprecationWarning, match=r"^search\(correct=\) .*no effect any more$"):
        assert search("m", correct=True) == ("m", "default", None)  # type: ignore[call-arg]


def test_both_spellings_at_once_are_refused() -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(TypeError, match="score= and objective= are one argument"),
    ):
        search("m", score=1, objective=2)  # type: ignore[call-arg]


def test_an_observer_takes_the_outcome_out_of_each_event() -> None:
    seen: list[Any] = []
    with pytest.warns(DeprecationWarning, match=r"use search\(progress=\)"):
        _, _, progress = search("m", observe=seen.append)  # type: ignore[call-arg]
    progress(Event("search", 1, 2, detail="trial 1"))
    progress(Event("search", 2, 2, detail="trial 2"))
    assert seen == ["trial 1", "trial 2"]


def test_a_class_is_named_in_the_warning() -> None:
    with pytest.warns(DeprecationWarning, match=r"^Track\(top=\) .*: use Track\(max_exponent=\)$"):
        assert Track(top=3).max_exponent == 3  # type: ignore[call-arg]
    assert Track(4).max_exponent == 4


def test_an_unknown_argument_is_still_an_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        search("m", scores=3)  # type: ignore[call-arg]


def test_the_function_keeps_its_name_its_docstring_and_its_signature() -> None:
    assert (search.__name__, search.__doc__) == ("search", "Return the arguments.")
    assert list(inspect.signature(search).parameters) == ["model", "objective", "progress"]


@pytest.mark.parametrize(("level", "outside"), [(2, False), (3, True)])
def test_the_warning_points_at_the_line_that_used_the_name(level: int, outside: bool) -> None:
    def old_name() -> None:
        warn_renamed("a", "b", stacklevel=level)

    def user(call: Callable[[], None]) -> int:
        line: int = inspect.currentframe().f_lineno  # type: ignore[union-attr]
        call()
        return line + 1

    with pytest.warns(DeprecationWarning, match="^a is deprecated .* use b$") as caught:
        line = user(old_name)
    assert (caught[0].lineno == line) is outside


def test_an_old_value_warns_once_at_the_callers_line() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    inputs = [torch.randn(8, 4)]
    with pytest.warns(DeprecationWarning, match='use per="tensor"') as caught:
        old = calibrate(model, {"0": 3, "2": 3}, inputs, per="layer")  # type: ignore[arg-type]
    assert [warning.filename for warning in caught] == [__file__]
    new = calibrate(model, {"0": 3, "2": 3}, inputs, per="tensor")
    assert all(torch.equal(old.layers[name].codes, new.layers[name].codes) for name in ("0", "2"))
