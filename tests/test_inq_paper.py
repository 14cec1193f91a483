"""The recipes of INQ's paper say what its table says, written down here a second time."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest

from octavo import cli
from octavo.recipe import Recipe, load_recipe

FOLDER = cli.RECIPES / "inq-paper"


class Row(NamedTuple):
    network: str
    bits: int
    per_cent: list[float]  # accumulated portions
    epochs: int  # at most
    decay: float = 0.0005


TABLE = {
    "alexnet-5bit": Row("alexnet", 5, [30, 60, 80, 100], 8),
    "vgg16-5bit": Row("vgg16", 5, [50, 75, 87.5, 100], 8),
    "googlenet-5bit": Row("googlenet", 5, [20, 40, 60, 80, 100], 8, 0.0002),
    "resnet18-5bit": Row("resnet18", 5, [50, 75, 87.5, 100], 8),
    "resnet50-5bit": Row("resnet50", 5, [50, 75, 87.5, 100], 8),
    "resnet18-4bit": Row("resnet18", 4, [30, 50, 80, 90, 95, 100], 30),
    "resnet18-3bit": Row("resnet18", 3, [20, 40, 60, 70, 80, 90, 95, 100], 30),
    "resnet18-2bit": Row("resnet18", 2, [20, 40, 60, 70, 80, 85, 90, 95, 97.5, 100], 30),
}


def recipe(name: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml")


def test_every_recipe_is_in_the_table() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_the_recipe_is_the_papers(name: str) -> None:
    row, one = TABLE[name], recipe(name)
    assert (one.task, one.options["network"], one.bits) == ("image_folder", row.network, row.bits)
    assert one.portions == pytest.approx([share / 100 for share in row.per_cent])
    assert (one.method, one.start, one.order, one.fit, one.per) == ("inq", "float", "magnitude", "max", "layer")
    assert (one.warmup, one.straight_through, one.search, one.teacher) == (0, 1, None, {})
    assert (one.retraining.labels, one.retraining.momentum, one.retraining.weight_decay) == (1, 0.9, row.decay)
    assert one.retraining.clip >= 1e6  # none, that is
    epochs = [epochs for _, epochs in one.schedule]
    assert math.fsum(epochs) <= row.epochs
    assert epochs[-1] == 0  # the last step only quantizes
    assert all(epochs[:-1])


@pytest.mark.parametrize("name", TABLE)
def test_the_recipe_is_found_by_its_name(name: str) -> None:
    found = cli._recipe_path(Path("inq-paper") / name)
    assert found == FOLDER / f"{name}.yaml"
