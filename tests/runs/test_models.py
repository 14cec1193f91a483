"""Networks by name: of libraries, of functions, of tasks."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.runs.tiny import Tiny
from torch import nn

from octavo.errors import OctavoError, RecipeError
from octavo.runs import models
from octavo.runs.models import load_model

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(4, width)

def with_input():
    return Net(), torch.zeros(2, 4)

def nothing():
    return None
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return str(path)


def test_a_function_or_a_class_of_a_file(mine: str) -> None:
    model: Any
    model, example = load_model(f"{mine}:Net", {"width": 7})
    assert (model.layer.out_features, example) == (7, None)
    model, example = load_model(f"{mine}:with_input", {})
    assert torch.equal(torch.as_tensor(example), torch.zeros(2, 4))
    with pytest.raises(RecipeError, match="expected the methods model, calibration"):
        load_model(f"{mine}:nothing", {})
    with pytest.raises(RecipeError, match="expected the options width, got 'depth'"):
        load_model(f"{mine}:Net", {"depth": 2})


def test_a_task_gives_its_network_and_one_of_its_inputs() -> None:
    model, example = load_model("tests.runs.tiny:Tiny", {"width": 9})
    assert isinstance(model, nn.Module)
    assert example.shape == (1, 5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "extra"), [("torchvision:a", "vision"), ("timm:a", "vision"), ("hf:a", "hf")]
)
def test_a_library_that_is_missing_names_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torchvision", "torchvision.models", "timm", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        OctavoError, match=rf"not installed: install octavo with its extra {extra}$"
    ):
        load_model(name, {})


def test_a_library_for_another_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(models, "import_module", fail)
    with pytest.raises(OctavoError, match=r"nms does not exist\); expected the torchvision that"):
        load_model("torchvision:resnet18", {})


def test_networks_of_transformers_come_from_their_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library of two classes stands for transformers; the real one is another room's test."""

    class Reader(nn.Module):
        main_input_name = "input_ids"

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.layer = nn.Linear(config.width, 2)
            self.dummy_inputs = {"input_ids": torch.zeros(1, 3, dtype=torch.long)}

    config = SimpleNamespace(architectures=["Reader"], width=5)
    library = SimpleNamespace(
        AutoConfig=SimpleNamespace(from_pretrained=lambda name: config), Reader=Reader
    )
    monkeypatch.setattr(models, "import_module", lambda _: library)
    model: Any
    model, example = load_model("hf:a-folder", {})
    assert model.layer.in_features == 5
    assert list(example) == ["input_ids"]  # type: ignore[arg-type]


class DictTask(Tiny):
    """Inputs as keyword arguments, in batches of eight."""

    def calibration(self) -> Any:
        return [{"input": batch, "flag": True} for batch in super().calibration()]


def test_costs_are_those_of_one_input_whatever_its_form() -> None:
    example: Any
    _, example = load_model("tests.runs.test_models:DictTask", {})
    assert (example["input"].shape, example["flag"]) == ((1, 5), True)
