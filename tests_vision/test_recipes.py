"""INQ's networks through the paper's recipes, from start to end, on a few small pictures and with
weights of chance."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from octavo import cli
from octavo.runs.recipe import load_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.task import load_task
from octavo.storage.packed import Packed

CLASSES = {"ant": (180, 60, 60), "bee": (60, 180, 60), "cat": (60, 60, 180)}
PAPER = sorted(RECIPES.glob("inq-paper/*.yaml"))
PARAMETERS = {  # as torchvision's and timm's pages have them, for 1000 classes
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "googlenet": 6_624_904,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
}
FEATURES = {
    "alexnet": 4096,
    "vgg16": 4096,
    "googlenet": 1024,
    "resnet18": 512,
    "resnet50": 2048,
}  # into the classifier
LAYERS = {
    "alexnet": 8,
    "vgg16": 16,
    "googlenet": 58,
    "resnet18": 21,
    "resnet50": 54,
}  # convolutions and linear layers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for part, count in (("train", 6), ("val", 3)):
        for name, colour in CLASSES.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise = random.integers(-50, 51, (80, 100, 3)) + np.array(colour)
                Image.fromarray(noise.astype(np.uint8)).save(root / part / name / f"{i}.jpg")
    return root


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in tmp_path.rglob("*"):  # half a gigabyte for each stage of VGG-16
        if path.is_file():
            path.unlink()


def octavo(*words: str) -> None:
    cli.app(words, standalone_mode=False)


def overrides(data: Path, *more: str) -> list[str]:
    options = {
        "train": data / "train",
        "val": data / "val",
        "weights": "null",
        "size": 64,
        "batch": 6,
        "workers": 1,
    }
    pairs = [
        *(f"options.{key}={value}" for key, value in options.items()),
        "epochs=0.34",
        *more,
    ]  # one step a stage
    return [word for pair in pairs for word in ("--set", pair)]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_recipe_runs_and_its_file_reloads_exactly(path: Path, data: Path) -> None:
    control = path.stem == "resnet18-5bit"  # once
    words = overrides(data, f"control={str(control).lower()}")
    recipe = load_recipe(path, words[1::2])
    octavo("run", f"inq-paper/{path.stem}", *words, "--folder", "run")
    result = json.loads(Path("run/result.json").read_text())
    assert [stage["portion"] for stage in result["stages"]] == [0.0] * (
        recipe.prune is not None
    ) + list(recipe.portions)
    assert ("control_score" in result) is control
    packed, network = Packed.load("run/packed.safetensors"), recipe.options["network"]
    assert len(packed.plan) == LAYERS[network]
    assert set(packed.plan.values()) == {recipe.bits}
    task = load_task("image_folder", recipe.options)
    model = task.model()
    fewer = (1000 - len(CLASSES)) * (FEATURES[network] + 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[network] - fewer
    packed.apply(model)
    assert task.score(model) == result["score"]
    assert packed.plan.keys() == {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    for name, bits in packed.plan.items():
        weight = model.get_parameter(f"{name}.weight").detach().abs()
        mantissas, exponents = torch.frexp(weight[weight > 0])
        assert (mantissas == 0.5).all()
        assert exponents.max() - exponents.min() < 2 ** (bits.bits - 2)
    packed.save("again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("run/packed.safetensors").read_bytes()


def test_without_labels_googlenet_imitates_itself(data: Path) -> None:
    words = overrides(data, "retraining.labels=0", "control=false", "portions=[0.5, 1]")
    octavo("run", "inq-paper/googlenet-5bit", *words, "--folder", "run")
    losses = [stage["loss"] for stage in json.loads(Path("run/result.json").read_text())["stages"]]
    assert losses[0] > 0


def test_a_network_of_timm(data: Path) -> None:
    words = overrides(
        data,
        "options.network=resnet18",
        "options.source=timm",
        "control=false",
        "portions=[0.5, 1]",
    )
    octavo("run", "inq-paper/resnet18-5bit", *words, "--folder", "run")
    assert Path("run/packed.safetensors").exists()


@pytest.mark.parametrize("network", ["alexnet", "googlenet", "resnet18", "inception_v3"])
def test_inspect(network: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = 96 if network == "inception_v3" else 64
    options = (
        f"network={network}",
        f"train={data / 'train'}",
        f"size={size}",
        "batch=4",
        "weights=null",
    )
    octavo(
        "inspect",
        "image_folder",
        *(word for option in options for word in ("-O", option)),
        "--json",
    )
    found = json.loads(capsys.readouterr().out)
    assert not [
        row["name"] for row in found["rows"] if not row["macs"]
    ]  # no head that scoring never uses
