"""The arguments that commands share, and figures as they are printed."""

import json

import pytest

from octavo.cli.options import print_figures, task_options
from octavo.errors import RecipeError


def test_options_of_a_task_are_values_in_yaml() -> None:
    assert task_options(None) == {}
    assert task_options(["depth=56", "name=a=b", "flag=true"]) == {
        "depth": 56,
        "name": "a=b",
        "flag": True,
    }
    with pytest.raises(RecipeError, match=r"^--option depth: expected key=value"):
        task_options(["depth"])


def test_figures_are_rounded_for_people_and_whole_for_scripts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {"small_one": 0.00012345, "large": 1234567, "rest": 2.34567, "none": [], "path": "x"}
    print_figures(figures, as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["small", "one", "1.2e-04"],
        ["large", "1,234,567"],
        ["rest", "2.346"],
        ["none", "none"],
        ["path", "x"],
    ]
    print_figures(figures, as_json=True)
    assert json.loads(capsys.readouterr().out) == figures
