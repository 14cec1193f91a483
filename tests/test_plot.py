"""The figures of matplotlib show the numbers that they are given."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from octavo import Apot, Budget, Plan, plot, search
from octavo.errors import OctavoError
from octavo.runs.search_figures import estimated_bytes

RESULT = {
    "recipe": {"task": "digits", "bits": 3}, "float_score": 1.0, "score": 1.0, "float_bytes": 9,
    "file_bytes": 3, "ratio": 3.0, "nominal_bits": 3.0,
}  # fmt: skip
STAGES = {
    "quantized": [
        {"portion": 0.5, "curve": [[2, 4.0], [4, 2.0]]},
        {"portion": 0.75, "curve": [[3, 1.0]]},
        {"portion": 1.0, "curve": []},
    ],
    "control": [{"portion": 0.0, "curve": [[7, 0.0]]}],
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "details.json").write_text(json.dumps({"stages": STAGES}))
    return tmp_path


@pytest.fixture
def axes() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def test_the_front_marks_the_plans(axes: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    result = search(model, [torch.randn(16, 5)], budget=Budget(average_bits=4), trials=32)
    assert plot.front(result, axes) is axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["trials", "front", "uniform plan", "exact plan", "plan"]
    drawn = axes.collections[0].get_offsets().tolist()
    assert drawn == [[estimated_bytes(result, trial), trial.objective] for trial in result.trials]
    x, y = axes.lines[0].get_data()
    assert list(x) == sorted(x)
    assert list(y) == sorted(y)


def test_a_plan_is_bars_in_the_order_of_the_layers(axes: Any) -> None:
    plan = Plan({"conv1": 5, "fc": Apot(6)}, weights={"conv1": 100, "fc": 300})
    plot.plan(plan, axes)
    assert [bar.get_width() for bar in axes.patches] == [5, 6]
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, True]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "fc"]
    assert axes.yaxis_inverted()
    assert axes.get_title() == "5.75 bits on average"


def test_the_stages_of_training_are_joined(axes: Any, run_folder: Path) -> None:
    plot.training(run_folder, axes)
    quantized, control = axes.lines[:2]
    assert [list(values) for values in quantized.get_data()] == [[2, 4, 7], [4.0, 2.0, 1.0]]
    assert list(control.get_xdata()) == [7]
    assert [line.get_xdata()[0] for line in axes.lines[2:]] == [0, 4]
    assert [text.get_text() for text in axes.texts] == ["50% frozen", "75% frozen"]


def test_without_axes_there_is_a_new_figure(run_folder: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    one = plot.training(run_folder)
    two = plot.plan({"a": 3})
    assert one.figure is not two.figure
    plt.close("all")


def test_a_run_that_did_not_retrain_has_no_curves(run_folder: Path) -> None:
    (run_folder / "details.json").unlink()
    with pytest.raises(OctavoError, match="expected a run that retrained"):
        plot.training(run_folder)


def test_without_matplotlib_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(OctavoError, match=r"install octavo with its extra plot$"):
        plot.plan({"a": 3})
