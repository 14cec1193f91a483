"""What octavo makes of pictures, against torchvision's own transforms; and what the packaged
weights are to be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from octavo.runs.recipe import load_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.tasks.image_files import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(500, 375), (375, 500), (64, 64), (640, 33), (33, 640), (256, 257), (301, 256)]


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * height).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def ours(interpolation: str) -> Preprocessing:
    return Preprocessing(size=224, resize=256, interpolation=interpolation, mean=MEAN, std=STD)


def as_inputs(made: Preprocessing, image: Image.Image) -> torch.Tensor:
    return made.inputs(torch.from_numpy(np.array(image)).unsqueeze(0))[0]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_scoring_sees_what_torchvision_sees(size: tuple[int, int], interpolation: str) -> None:
    steps = [
        transforms.Resize(256, InterpolationMode(interpolation)),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
    ]
    expected = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])(picture(*size))
    made = ours(interpolation)
    found = as_inputs(made, made.centre(picture(*size), torch.Generator()))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_training_draws_and_sees_what_torchvision_does(size: tuple[int, int]) -> None:
    steps = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    theirs, made = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]), ours("bilinear")
    for seed in range(20):
        torch.manual_seed(seed)
        expected = theirs(picture(*size))
        found = as_inputs(made, made.random(picture(*size), torch.Generator().manual_seed(seed)))
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("inq-paper/*.yaml")), ids=lambda path: path.stem
)
def test_the_recipes_weights_exist_and_were_scored_on_such_pictures(path: Path) -> None:
    recipe = load_recipe(path)
    weights = models.get_model_weights(recipe.options["network"])[recipe.options["weights"]]
    preset = weights.transforms()
    assert (preset.crop_size, preset.resize_size, preset.interpolation) == (
        [224],
        [256],
        InterpolationMode.BILINEAR,
    )
    assert (tuple(preset.mean), tuple(preset.std)) == (MEAN, STD)
    if "base:" not in path.read_text():  # the others take it over
        assert f"{100 - weights.meta['_metrics']['ImageNet-1K']['acc@1']:.2f} %" in path.read_text()
