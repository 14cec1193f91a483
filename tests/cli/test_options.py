"""The arguments that commands share, and figures as they are printed."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from octavo import inspection
from octavo.cli.options import FAST, print_figures, read_budget, task_options
from octavo.errors import BudgetError, PlanError, RecipeError
from octavo.network import devices
from octavo.plan import Budget, Plan
from octavo.ptq import calibration
from octavo.ptq.file_form import FileForm


def test_options_of_a_task_are_values_in_yaml() -> None:
    assert task_options(None) == {}
    assert task_options(["depth=56", "name=a=b", "flag=true"]) == {
        "depth": 56,
        "name": "a=b",
        "flag": True,
    }
    with pytest.raises(RecipeError, match=r"^--option depth: expected key=value"):
        task_options(["depth"])


def test_a_budget_is_one_pair() -> None:
    assert read_budget(None) is None
    assert read_budget("bytes=70_000") == Budget(bytes=70_000)
    with pytest.raises(
        BudgetError, match=r"--budget byte=3: expected one of .* nearest .* 'bytes'"
    ):
        read_budget("byte=3")
    assert FileForm.coding == FAST


def test_figures_are_rounded_for_people_and_whole_for_scripts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {
        "small_one": 0.00012345,
        "share": 0.91726,
        "large": 1234567,
        "rest": 2.34567,
        "none": [],
        "path": "x",
    }
    print_figures(figures, as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["small", "one", "1.2e-04"],
        ["share", "0.9173"],
        ["large", "1,234,567"],
        ["rest", "2.346"],
        ["none", "none"],
        ["path", "x"],
    ]
    print_figures(figures, as_json=True)
    assert json.loads(capsys.readouterr().out) == figures


def test_a_network_is_put_on_the_device_that_is_named(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's device without numbers stands for a GPU."""
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu", "meta"])
    seen: list[Any] = []

    def look(model: Any, example: Any) -> None:
        seen.extend([model[0].weight, example])
        raise PlanError("that is enough")

    monkeypatch.setattr(inspection, "inspect", look)
    octavo("inspect", "tiny.py:Tiny", "--device", "meta", "--json")
    assert [tensor.device.type for tensor in seen] == ["meta", "meta"]


def test_export_calibrates_on_the_device_that_is_named(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu", "meta"])
    seen: list[str] = []

    def look(model: Any, *_: Any) -> None:
        seen.append(model[0].weight.device.type)
        raise PlanError("that is enough")

    monkeypatch.setattr(calibration, "calibrate", look)
    Plan({"0": 4}).save("plan.yaml")
    words = ["export", "--plan", "plan.yaml", "-t", "tiny.py:Tiny", "-o", "a.onnx"]
    octavo(*words, "--device", "meta")
    assert seen == ["meta"]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "r.yaml"),
        ("run", "r.yaml", "--set", "device=cpu"),  # the option counts
        ("inspect", "tiny.py:Tiny"),
        ("search", "tiny.py:Tiny", "-o", "plan.yaml"),
        ("quantize", "tiny.py:Tiny", "-o", "net.safetensors"),
        ("demo",),
    ],
)
def test_a_device_that_is_not_there_is_refused(words: tuple[str, ...], refused: Any) -> None:
    said = refused(*words, "--device", "cuda:99")
    assert said.startswith("device: expected auto or one that this machine has, cpu")
    assert "got 'cuda:99'" in said
