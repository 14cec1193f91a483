"""The course of a search in one line."""

import pytest

from octavo.plan import Plan
from octavo.progress.trials import best_so_far, widths


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (Plan({"a": 3, "b": 5}), "35"),
        (Plan({"a": "apot6", "b": 5}), "apot6 5"),
        (Plan({"a": 3, "b": 5}, activations={"b": 8}), "3 5x8"),
    ],
)
def test_widths_are_as_short_as_they_can_be(plan: Plan, text: str) -> None:
    assert widths(plan) == text


@pytest.mark.parametrize(
    ("rewards", "text"),
    [([-1.0], "▁"), ([-1.0, -2.0], "▁▁"), ([-4.0, -1.0, -2.0], "▁██"), ([0.0, 1.0, 7.0], "▁▂█")],
)
def test_the_curve_is_that_of_the_best_so_far(rewards: list[float], text: str) -> None:
    assert best_so_far(rewards) == text


def test_a_long_curve_has_the_width_that_was_asked_for() -> None:
    curve = best_so_far([float(number) for number in range(1000)], width=10)
    assert (len(curve), curve[0], curve[-1]) == (10, "▁", "█")
