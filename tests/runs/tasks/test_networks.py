"""Networks by name: from which library, with which weights, and what is said where there is
none."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from octavo.errors import FormatError, OctavoError, RecipeError
from octavo.runs.tasks.networks import build

OWN = """
from torch import nn
def small(num_classes): return nn.Linear(2, num_classes)
def nothing(num_classes): return None
"""


class Headed(nn.Module):
    """As torchvision's GoogLeNet: two auxiliary heads, and a warning unless it is told how to
    begin."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.aux_logits = True
        self.fc, self.aux1, self.aux2 = (
            nn.Linear(2, classes),
            nn.Linear(2, classes),
            nn.Linear(2, classes),
        )

    def forward(self, x: torch.Tensor) -> Any:
        if self.training and self.aux_logits:
            return self.fc(x), self.aux1(x), self.aux2(x)
        return self.fc(x)


def library(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubles of torchvision, with resnet18 and googlenet, and of timm, with resnet18 and vit; they
    note how they are asked."""

    def get_model(
        name: str, *, weights: str | None = None, num_classes: int = 1000, **others: Any
    ) -> nn.Module:
        model = Headed(num_classes) if name == "googlenet" else nn.Linear(2, num_classes)
        model.asked = ("torchvision", name, weights, others)  # type: ignore[assignment]
        return model

    def create_model(name: str, pretrained: bool = False, num_classes: int = 1000) -> nn.Module:
        model = nn.Linear(2, num_classes)
        model.asked = ("timm", name, pretrained)  # type: ignore[assignment]
        return model

    there = SimpleNamespace(__members__={"IMAGENET1K_V1": 1, "DEFAULT": 1})
    models = library(
        "torchvision.models",
        get_model=get_model,
        list_models=lambda module: (
            ["googlenet", "resnet18"] if module.__name__ == "torchvision.models" else ["segmenter"]
        ),
        get_model_weights=lambda name: there,
    )
    timm = library(
        "timm",
        create_model=create_model,
        list_models=lambda: ["resnet18", "vit"],
        list_pretrained=lambda pattern: ["vit.in1k", "vit.in21k"] if pattern == "vit.*" else [],
    )
    monkeypatch.setitem(sys.modules, "torchvision", library("torchvision", models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.parametrize(
    ("name", "options", "asked", "outputs"),
    [
        ("resnet18", {}, ("torchvision", "resnet18", None, {}), 7),
        ("resnet18", {"source": "timm"}, ("timm", "resnet18", False), 7),
        ("vit", {}, ("timm", "vit", False), 7),
        ("vit", {"weights": "default"}, ("timm", "vit", True), 1000),
        ("vit", {"weights": "in21k"}, ("timm", "vit.in21k", True), 1000),
        ("resnet18", {"weights": "default"}, ("torchvision", "resnet18", "DEFAULT", {}), 1000),
        (
            "resnet18",
            {"weights": "imagenet1k_v1"},
            ("torchvision", "resnet18", "IMAGENET1K_V1", {}),
            1000,
        ),
        ("googlenet", {}, ("torchvision", "googlenet", None, {"init_weights": True}), 7),
        ("googlenet", {"weights": "default"}, ("torchvision", "googlenet", "DEFAULT", {}), 1000),
    ],
)
def test_a_network_of_a_library(
    name: str, options: dict[str, Any], asked: object, outputs: int, libraries: None
) -> None:
    model = build(name, 7, **options)
    assert model.asked == asked
    assert model.train()(torch.zeros(1, 2)).shape == (1, outputs)
    assert {key.split(".")[0] for key in model.state_dict()} <= {
        "fc",
        "weight",
        "bias",
    }  # no auxiliary head


@pytest.mark.parametrize(
    ("name", "options", "cause"),
    [
        (
            "resnet19",
            {},
            (
                r"^network: expected one that torchvision or timm has, got "
                r"'resnet19' \(the nearest is 'resnet18'\)$"
            ),
        ),
        (
            "vit",
            {"source": "torchvision"},
            "^network: expected one that torchvision has, got 'vit'",
        ),
        (
            "resnet18",
            {"weights": "V2"},
            "^weights: of resnet18 torchvision has IMAGENET1K_V1, DEFAULT, got 'V2'$",
        ),
        ("vit", {"weights": "a1"}, "^weights: of vit timm has in1k, in21k, got 'a1'$"),
        (
            "own.py:small",
            {"weights": "V1"},
            r"^weights: with 'own.py:small' expected default or a file .* got 'V1'$",
        ),
        (
            "own.py:smal",
            {},
            (
                r"^network 'own.py:smal': own.py has no class or "
                r"function 'smal' \(the nearest is 'small'\)$"
            ),
        ),
        (
            "own.py:nothing",
            {},
            "^network 'own.py:nothing': expected it to return a torch.nn.Module, got NoneType$",
        ),
        ("none.py:small", {}, "^network 'none.py:small': there is no file none.py$"),
    ],
)
def test_what_there_is_not(
    name: str,
    options: dict[str, Any],
    cause: str,
    libraries: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("own.py").write_text(OWN)
    with pytest.raises(RecipeError, match=cause):
        build(name, 7, **options)


def test_without_the_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    cause = (
        r"needs torchvision or timm: install octavo with its extra vision "
        r"\(torchvision: ModuleNotFoundError.*; timm: "
    )
    with pytest.raises(OctavoError, match=cause):
        build("resnet18", 7)
    with pytest.raises(
        OctavoError, match=r"needs timm: install octavo with its extra vision \(timm: "
    ):
        build("resnet18", 7, source="timm")


def test_a_library_that_does_not_fit_this_torch_counts_as_missing(
    libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unfit(ModuleType):
        @property
        def models(self) -> Any:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision.models")
    monkeypatch.setitem(sys.modules, "torchvision", Unfit("torchvision"))
    assert build("resnet18", 7).asked == ("timm", "resnet18", False)
    with pytest.raises(
        OctavoError,
        match=r"needs torchvision: .* RuntimeError: operator torchvision::nms does not exist",
    ):
        build("resnet18", 7, source="torchvision")


def test_an_own_network_and_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"{tmp_path / 'own.py'}:small"
    (tmp_path / "own.py").write_text(OWN)
    assert build(name, 7, weights="default").get_parameter("weight").shape == (7, 2)
    state = nn.Linear(2, 3).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    loaded = build(name, 3, weights=str(tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    with pytest.raises(
        FormatError, match=r"w\.safetensors: tensor 'bias': expected shape \(7,\), got shape \(3,\)"
    ):
        build(name, 7, weights=str(tmp_path / "w.safetensors"))
