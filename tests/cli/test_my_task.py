"""The task and the recipe that `octavo init` writes run as they stand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
