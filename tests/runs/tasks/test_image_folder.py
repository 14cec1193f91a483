"""The task `image_folder` on a few small pictures and a network of its own: splits, scores, errors,
and a run."""

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from octavo import cli
from octavo.errors import FormatError, RecipeError
from octavo.progress.display import Display
from octavo.runs.recipe import load_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.run import run
from octavo.runs.task import load_task
from octavo.runs.tasks.image_folder import ImageFolder
from octavo.storage.packed import Packed

COLOURS = {"ant": (180, 60, 60), "bee": (60, 180, 60), "cat": (60, 60, 180)}
NETS = """
from torch import nn

def small(num_classes):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *head)

def two(num_classes):
    return small(2)

class pair(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = small(num_classes)
    def forward(self, x):
        return self.inner(x), x
"""


def draw(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Pictures of noise around the colour of their class."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = random.integers(-50, 51, (20, 26, 3)) + np.array(COLOURS[name])
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("nets.py").write_text(NETS)
    draw(tmp_path / "train", {"ant": 16, "bee": 14, "cat": 10}, 0)
    draw(tmp_path / "val", {"ant": 3, "bee": 6, "cat": 3}, 1)
    return tmp_path


def task(**options: Any) -> ImageFolder:
    small = {"train": "train", "val": "val", "network": "nets.py:small", "size": 16, "batch": 8}
    made = load_task("image_folder", small | options)
    assert isinstance(made, ImageFolder)
    return made


def keys(batches: Any) -> set[bytes]:
    """What tells images from each other, of pictures that are not cropped at random."""
    return {image.contiguous().numpy().tobytes() for inputs in batches for image in inputs}


class Spy(nn.Module):
    """Remembers what it is shown; likes class 1 best, then 2, then 0."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append(x)
        return torch.tensor([[0.0, 2.0, 1.0]]).expand(len(x), 3)


def shown(one: ImageFolder) -> set[bytes]:
    spy = Spy()
    one.score(spy)
    return keys(spy.seen)


@pytest.mark.parametrize(("top", "right"), [(1, 6), (2, 9), (3, 12), (5, 12)])
def test_the_score_is_the_share_of_images_that_are_right(top: int, right: int, data: Path) -> None:
    spy = Spy()
    assert task(top=top).score(spy) == pytest.approx(100 * right / 12)
    assert spy.training
    assert [len(x) for x in spy.seen] == [8, 4]
    assert spy.seen[0].shape[1:] == (3, 16, 16)


def test_scoring_sees_the_same_pixels_every_time(data: Path) -> None:
    one = task()
    assert shown(one) == shown(one) == shown(task(workers=1))
    assert len(shown(one)) == 12


def test_the_holdout_is_a_tenth_of_the_training_images_that_is_not_trained_on(data: Path) -> None:
    one = task(split="holdout", val=None, calibration_size=1000)
    trained, held = keys(one.calibration()), shown(one)
    assert (len(trained), len(held)) == (36, 4)
    assert trained | held == keys(
        task(calibration_size=1000).calibration()
    )  # every training image, in the split test
    assert shown(task(split="holdout")) == held
    assert len(one.train_batches()) == 36 // 8
    assert len(task().train_batches()) == 40 // 8
    paths = {path for path, _ in one.train_batches().files.files}
    assert len(paths) == 36
    assert not paths & {path for path, _ in one._scored.files}


def test_calibration_is_the_same_for_both_splits(data: Path) -> None:
    test, holdout = (
        torch.cat(list(task(split=split, calibration_size=20).calibration()))
        for split in ("test", "holdout")
    )
    assert len(test) == 20
    assert torch.equal(test, holdout)


def test_pixels_are_normalised_as_for_imagenet_unless_told_otherwise(data: Path) -> None:
    """The colours' means, by hand from the files."""
    (inputs,) = task(calibration_size=40, batch=40, size=20, resize=20).calibration()
    files = sorted((data / "train").rglob("*.png"))
    centre = np.stack([np.asarray(Image.open(path))[:, 3:23] for path in files]) / 255  # 26 wide
    expected = (centre.mean((0, 1, 2)) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert inputs.mean((0, 2, 3)).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    (plain,) = task(
        calibration_size=40, batch=40, size=20, resize=20, mean=[0, 0, 0], std=[1, 1, 0.5]
    ).calibration()
    assert plain.mean((0, 2, 3)).tolist() == pytest.approx(
        (centre.mean((0, 1, 2)) * [1, 1, 2]).tolist(), abs=1e-5
    )


def test_the_short_side_is_eight_sevenths_of_the_size(data: Path) -> None:
    assert task(size=224).train_batches().preprocessing.resize == 256
    assert task(size=224, resize=232).train_batches().preprocessing.resize == 232


def test_every_call_gives_a_new_copy_of_the_same_network(data: Path) -> None:
    before = torch.get_rng_state()
    one = task()
    first, second = one.model(), one.model()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    with torch.no_grad():
        first.get_parameter("0.weight").zero_()
    assert second.get_parameter("0.weight").any()
    assert one.model().get_parameter("0.weight").any()
    assert not second.training
    assert second.get_parameter("5.weight").shape == (3, 8)  # as many outputs as class folders
    assert second.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    other = task(weights=None).model()  # from another task: always the same
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), second.parameters(), strict=True)
    )


def test_the_loss_is_cross_entropy(data: Path) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(torch.tensor([[0.5, 0.25, 0.25]])).expand(len(x), 3)

    loss = task().loss(Half(), (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])))
    assert loss.item() == pytest.approx(1.5 * np.log(2))


def test_the_device(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert task(device="meta").model().get_parameter("0.weight").is_meta
    moved: list[str] = []
    monkeypatch.setattr(nn.Module, "to", lambda self, device, **_: moved.append(device))
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        task().model()
    assert moved == ["cuda", "cpu"]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"batch": 0}, "batch: expected at least 1"),
        ({"split": "valid"}, "split: expected 'test' or 'holdout'"),
        ({"workers": -1}, "workers: expected at least 0, got -1"),
        ({"top": 0}, "top: expected at least 1, got 0"),
        ({"source": "keras"}, "source: expected one of auto, torchvision, timm, got 'keras'"),
        (
            {"interpolation": "lanczos"},
            "interpolation: expected one of bilinear, bicubic, got 'lanczos'",
        ),
        ({"size": 224, "resize": 200}, "resize: expected at least the size, 224, got 200"),
        ({"std": [1, 1, 0]}, "mean, std: expected three numbers each, std positive"),
        ({"mean": [1, 1]}, "mean, std: expected three numbers each"),
        ({"netwrok": "vgg16"}, r"got 'netwrok' \(the nearest is 'network'\)"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], cause: str, data: Path) -> None:
    with pytest.raises(RecipeError, match=cause):
        task(**options)


def test_the_network_must_fit_the_classes(data: Path) -> None:
    for network, got in (("two", r"got shape \(8, 2\)"), ("pair", "got tuple")):
        one = task(network=f"nets.py:{network}")
        with pytest.raises(
            RecipeError,
            match=rf"^network 'nets.py:{network}': expected outputs of shape \(n, 3\), .* {got}$",
        ):
            one.score(one.model())


def test_val_must_have_the_classes_of_train(data: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^val: expected a folder to score on, got none; or set split: holdout$"
    ):
        task(val=None).score(Spy())
    with pytest.raises(
        RecipeError, match=r"^val: expected a folder .* there is none at elsewhere$"
    ):
        task(val="elsewhere").score(Spy())
    (data / "val" / "bee").rename(data / "val" / "bees")
    with pytest.raises(
        RecipeError,
        match=r"^val: expected the same class folders as in train, 'bee' is only in train$",
    ):
        task().score(Spy())


def test_a_broken_image_is_named_in_training_too(data: Path) -> None:
    (data / "train" / "cat" / "3.png").write_bytes(b"no picture")
    with pytest.raises(
        FormatError, match=r"^train/cat/3\.png: not a readable image: UnidentifiedImageError"
    ):
        list(task().train_batches())


def test_the_docs_show_every_option_with_its_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "vision.md").read_text(encoding="utf-8")
    options = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["options"]
    assert list(options) == [field.name for field in fields(ImageFolder)]
    given = {key: options[key] for key in ("train", "val", "weights")}
    assert asdict(ImageFolder(**options)) == asdict(ImageFolder(**given)) | {
        key: options[key] for key in ("mean", "std")
    }
    assert (tuple(options["mean"]), tuple(options["std"])) == (
        ImageFolder("").mean,
        ImageFolder("").std,
    )


OVERRIDES = (
    (
        "options={train: train, val: val, network: 'nets.py:small', "
        "weights: null, size: 16, batch: 8, workers: 0}"
    ),
    "epochs=1",
    "retraining.learning_rate=0.05",
)


def test_a_recipe_of_the_paper_from_start_to_end(data: Path) -> None:
    """The paper's portions and settings by labels, on a network that learns these colours as it is
    quantized."""
    path = RECIPES / "inq-paper" / "resnet18-4bit.yaml"
    recipe = load_recipe(path, OVERRIDES)
    with Display(Console(quiet=True)) as display:
        result, again = (run(recipe, data / name / "run", display) for name in ("one", "two"))
    assert (again["score"], again["stages"][0]["loss"]) == (
        result["score"],
        result["stages"][0]["loss"],
    )
    assert [stage["portion"] for stage in result["stages"]] == [0.3, 0.5, 0.8, 0.9, 0.95, 1]
    assert result["labels_used"]
    packed = Packed.load(data / "one" / "run" / "packed.safetensors")
    model = task(weights=None).model()
    packed.apply(model)
    assert task().score(model) == result["score"]
    assert result["score"] > max(60, result["float_score"])
    for name in ("0.weight", "5.weight"):
        weight = model.get_parameter(name).abs()
        mantissas, exponents = torch.frexp(weight[weight > 0])
        assert (mantissas == 0.5).all()
        assert exponents.max() - exponents.min() < 4  # four exponents at 4 bits


def test_the_commands(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def octavo(*words: str) -> str:
        cli.app(words, standalone_mode=False)
        return capsys.readouterr().out

    options = ["-O", "train=train", "-O", "val=val", "-O", "network=nets.py:small", "-O", "size=16"]
    assert "conv2d" in octavo("inspect", "image_folder", *options)
    pairs = [word for pair in (*OVERRIDES, "control=false") for word in ("--set", pair)]
    octavo("run", "inq-paper/resnet18-5bit", *pairs)
    assert Path("runs/resnet18-5bit/packed.safetensors").exists()
    said = octavo(
        "evaluate",
        "runs/resnet18-5bit/packed.safetensors",
        "-t",
        "image_folder",
        *options,
        "-O",
        "top=3",
    )
    assert "score  100.0\n" in said
