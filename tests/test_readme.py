"""The README does what it says: its code is run as it is written."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from octavo.activations.quantizer import input_formats
from octavo.runs.recipe import Recipe, make_recipe
from octavo.runs.task import METHODS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_five_lines_and_the_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)
    model = nn.Sequential(layers[0], nn.BatchNorm2d(4), nn.Flatten(), layers[1])
    fresh = copy.deepcopy(model)
    calls: list[nn.Module] = []
    quantize, reload, calibrate, search, surgery, activations, _ = blocks("python")
    exec(quantize, {"model": model, "retrain": calls.append})
    assert calls == [model] * 4
    exec(reload, {"model": fresh})
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    weights = torch.cat([layer.weight.flatten() for layer in layers]).abs()
    assert set(torch.frexp(weights[weights > 0]).mantissa.tolist()) == {0.5}
    closed: dict[str, Any] = {"model": fresh, "inputs": [torch.randn(8, 1, 4, 4)]}
    exec(calibrate, closed)
    assert closed["packed"].nominal_bits == 4
    exec(search, closed)
    assert closed["packed"].nominal_bits <= 3
    steps: list[nn.Module] = []
    exec(surgery, {"model": fresh, "train_step": steps.append})
    assert len(steps) == 500
    assert sum(
        int((parameter == 0).sum()) for parameter in fresh.parameters() if parameter.dim() > 1
    ) == round(0.8 * (36 + 32))
    exec(activations.replace('"conv1"', '"0"'), closed)
    assert {name: form.bits for name, form in input_formats(fresh).items()} == {"0": 8, "3": 4}


def test_the_task_has_the_methods_that_a_task_needs() -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python")[6], namespace)
    assert set(METHODS) == {name for name in vars(namespace["MyTask"]) if not name.startswith("_")}


def test_the_recipe_shows_every_key_with_its_default() -> None:
    content = yaml.safe_load(blocks("yaml")[0])
    shown = make_recipe(content, "README.md")
    assert set(content) == set(Recipe.model_fields)
    assert shown == Recipe(task=shown.task, bits=shown.bits)
    assert set(content["retraining"]) == set(vars(shown.retraining))
    assert set(content["oneshot"]) == set(vars(shown.oneshot))
    assert content["activations"] is None


def test_the_commands(tmp_path: Path) -> None:
    commands = [line.partition("#")[0] for line in blocks("sh")[1].splitlines()]
    assert [command.split()[1] for command in commands] == [
        "demo",
        "inspect",
        "run",
        "quantize",
        "quantize",
        "search",
        "verify",
        "evaluate",
        "export",
    ]
    for command in commands[1:]:  # the demo has its own test
        words = [sys.executable, "-m", "octavo", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
