"""The recipes of INQ's paper say what its table says, written down here a second time."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest

from octavo.cli.runs import _recipe_path
from octavo.formats.width import Width
from octavo.runs.recipe import Recipe, load_recipe
from octavo.runs.recipes import RECIPES

FOLDER = RECIPES / "inq-paper"


SPARSE: list[float] = [
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    70,
    80,
    90,
    95,
    100,
]  # portions of a pruned network


class Row(NamedTuple):
    network: str
    bits: int
    per_cent: list[float]  # accumulated portions
    epochs: int  # at most
    decay: float = 0.0005


TABLE = {
    "alexnet-5bit": Row("alexnet", 5, [30, 60, 80, 100], 8),
    "vgg16-5bit": Row("vgg16", 5, [50, 75, 87.5, 100], 8),
    "vgg16-w5a4": Row("vgg16", 5, [50, 75, 87.5, 100], 8),
    "alexnet-dns-5bit": Row("alexnet", 5, SPARSE, 8),
    "alexnet-dns-4bit": Row("alexnet", 4, SPARSE, 8),
    "alexnet-dns-3bit": Row("alexnet", 3, SPARSE, 8),
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
    assert (one.task, one.options["network"]) == ("image_folder", row.network)
    assert one.bits == Width(row.bits)
    assert one.portions == pytest.approx([share / 100 for share in row.per_cent])
    assert (one.method, one.start, one.order, one.fit, one.per) == (
        "inq",
        "float",
        "magnitude",
        "max",
        "tensor",
    )
    assert (one.warmup, one.straight_through, one.search, one.teacher) == (0, 1, None, {})
    assert (one.retraining.labels, one.retraining.momentum, one.retraining.weight_decay) == (
        1,
        0.9,
        row.decay,
    )
    assert one.retraining.clip >= 1e6  # none, that is
    epochs = [epochs for _, epochs in one.schedule]
    assert math.fsum(epochs) <= row.epochs
    assert epochs[-1] == 0  # the last step only quantizes
    assert all(epochs[:-1])


def test_only_what_says_so_is_pruned_or_has_rounded_inputs() -> None:
    """DNS left one weight of AlexNet in 17.7."""
    pruned = {name: one.prune.sparsity for name in TABLE if (one := recipe(name)).prune}
    assert pruned == dict.fromkeys(
        [f"alexnet-dns-{bits}bit" for bits in (3, 4, 5)], pytest.approx(1 - 1 / 17.7, abs=1e-4)
    )
    rounded = {name: one.activations.bits for name in TABLE if (one := recipe(name)).activations}
    assert rounded == {"vgg16-w5a4": {"*": 4, "features.0": 8}}


@pytest.mark.parametrize("name", TABLE)
def test_the_recipe_is_found_by_its_name(name: str) -> None:
    found = _recipe_path(Path("inq-paper") / name)
    assert found == FOLDER / f"{name}.yaml"
