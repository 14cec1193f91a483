"""The files to begin with: they are complete, they run as they stand, and nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import starting

FEWER = ["search.trials=24", "epochs=0.1", "control=false"]


def test_a_task_and_a_recipe_that_run_as_they_stand(octavo: Callable[..., Any]) -> None:
    said = octavo("init")
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("written: my_task.py\nwritten: my_recipe.yaml\n")
    inspected = json.loads(octavo("inspect", "my_task.py:MyTask", "--json").out)
    assert [row["name"] for row in inspected["rows"]] == ["conv1", "conv2", "classifier"]
    fewer = [word for each in FEWER for word in ("--set", each)]
    said = octavo("run", "my_recipe.yaml", "--json", *fewer)
    assert said.status == 0, said.err
    result = json.loads(said.out)
    assert result["ratio"] >= 8
    assert min(result["float_score"], result["score"]) > 90
    assert Path("runs/my_recipe/report.html").exists()


@pytest.mark.parametrize("name", starting.FILES)
def test_it_writes_over_nothing(name: str, refused: Callable[..., str]) -> None:
    Path(name).write_text("mine")
    assert refused("init") == f"{name}: there already; move it away, or begin in another folder"
    assert Path(name).read_text() == "mine"


def test_each_command_that_it_proposes_names_a_file_that_it_wrote(
    octavo: Callable[..., Any],
) -> None:
    lines = [line.split() for line in octavo("init").out.splitlines() if "  octavo " in line]
    assert [Path(words[2].partition(":")[0]).is_file() for words in lines] == [True, True]
    assert octavo("init", "--quiet").status == 2
