"""`octavo inspect torchvision:NAME` and `timm:NAME` need no task, and count what an image costs."""

import pytest

from octavo.errors import RecipeError
from octavo.inspection import inspect
from octavo.runs.models import load_model


@pytest.mark.parametrize(
    ("name", "weights", "macs"),
    [
        ("torchvision:resnet18", 11_678_912, 1_814_073_344),
        ("timm:resnet18", 11_678_912, 1_814_073_344),
    ],
)
def test_a_network_of_a_library(name: str, weights: int, macs: int) -> None:
    rows = inspect(*load_model(name, {})).rows
    assert sum(row.weights for row in rows) == weights
    assert sum(row.macs or 0 for row in rows) == macs


def test_a_detector_has_no_size_of_its_own() -> None:
    model, example = load_model("torchvision:fasterrcnn_mobilenet_v3_large_fpn", {})
    assert example is None
    assert inspect(model, example).rows


def test_options_are_those_of_the_library() -> None:
    model, _ = load_model("timm:resnet18", {"num_classes": 7})
    assert "fc" in {row.name for row in inspect(model).rows if row.shape[0] == 7}


@pytest.mark.parametrize(
    ("name", "near"), [("torchvision:resnet81", "resnet18"), ("timm:resnet81", "resnet18")]
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"there is no such network .the nearest is '{near}'"):
        load_model(name, {})
