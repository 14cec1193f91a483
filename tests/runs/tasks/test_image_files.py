"""Images in class folders: which are found, what is made of them, in which batches, and what is
said of bad ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from octavo.errors import FormatError, RecipeError
from octavo.runs.tasks.image_files import ImageFiles, Loader, Preprocessing, find_images

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def preprocessing(size: int = 20, resize: int = 20, **changes: Any) -> Preprocessing:
    plain: dict[str, Any] = {
        "interpolation": "bilinear",
        "mean": (0, 0, 0),
        "std": (1 / 255,) * 3,
    }  # pixels come out as they are
    return Preprocessing(size=size, resize=resize, **plain | changes)


def coordinates(width: int, height: int) -> Image.Image:
    """A picture that is as red as it is far to the right, and as green as it is far down."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 5, 4 and 3 pictures, each of its class's colour; the i-th is i + 1 grey
    levels darker."""
    for name, colour, count in zip(("ant", "bee", "cat"), COLOURS, (5, 4, 3), strict=True):
        for i in range(count):
            save(
                tmp_path / name / f"{i}.png",
                Image.new("RGB", (24, 20), tuple(max(0, c - i - 1) for c in colour)),
            )
    return tmp_path


def names(found: ImageFiles, root: Path) -> list[tuple[str, int]]:
    return [(Path(path).relative_to(root).as_posix(), label) for path, label in found.files]


def test_classes_and_files_come_in_alphabetical_order(tmp_path: Path) -> None:
    wanted = ["Zebra/b.JPG", "ant/10.png", "ant/2.png", "ant/deep/er/1.jpeg", "bee/x.webp"]
    for name in [*reversed(wanted), "ant/notes.txt", "ant/._2.png", ".trash/a.png", "top.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(str(tmp_path), "train")
    assert found.classes == ("Zebra", "ant", "bee")
    assert names(found, tmp_path) == list(zip(wanted, (0, 1, 1, 1, 2), strict=True))


@pytest.mark.parametrize(
    ("made", "place", "cause"),
    [
        (
            [],
            "none",
            (
                r"^val: expected a folder with one folder of images for "
                r"each class, there is none at .*none$"
            ),
        ),
        (["a.png"], "a.png", r"there is none at .*a\.png$"),
        (
            ["a.png", ".git/b.png"],
            ".",
            r"^val: expected a folder with one folder .*, there is no folder in ",
        ),
        (
            ["cat/a.png", "dog/b.txt"],
            ".",
            r"^val: expected images in every class folder, there is none in .*dog$",
        ),
    ],
)
def test_a_folder_that_cannot_be(made: list[str], place: str, cause: str, tmp_path: Path) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(RecipeError, match=cause):
        find_images(str(tmp_path / place), "val")


@pytest.mark.parametrize(
    ("width", "height", "left", "top"),
    [(40, 30, 10, 5), (30, 41, 5, 10), (30, 30, 5, 5), (33, 30, 6, 5)],
)
def test_the_centre_is_cut_out_where_nothing_is_resized(
    width: int, height: int, left: int, top: int
) -> None:
    out = pixels(preprocessing(20, 30).centre(coordinates(width, height), seeded(0)))
    assert np.array_equal(out, pixels(coordinates(width, height))[top : top + 20, left : left + 20])


def test_the_short_side_is_resized() -> None:
    out = pixels(
        preprocessing(30, 40).centre(coordinates(200, 80), seeded(0))
    )  # to 100 x 40, then columns 35 to 64
    assert out.shape == (30, 30, 3)
    assert np.abs(out[:, :, 0] - (2 * np.arange(35, 65) + 0.5)).max() <= 1
    assert np.abs(out[:, :, 1] - (2 * np.arange(5, 35) + 0.5)[:, None]).max() <= 1


def test_interpolations_differ() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    bilinear, bicubic = (
        preprocessing(interpolation=i).centre(noise, seeded(0)) for i in ("bilinear", "bicubic")
    )
    assert pixels(bicubic).std() > 1.05 * pixels(bilinear).std()  # it is the sharper one


def test_random_parts_have_the_areas_and_ratios_they_should_have() -> None:
    shares, ratios, mirrored = [], [], []
    for seed in range(300):
        out = pixels(preprocessing(32).random(coordinates(240, 180), seeded(seed)))
        across, down = (
            float(out[16, -1, 0] - out[16, 0, 0]),
            float(out[-1, 16, 1] - out[0, 16, 1]),
        )
        width, height = (abs(way) * 32 / 31 for way in (across, down))
        shares.append(width * height / (240 * 180))
        ratios.append(width / height)
        mirrored.append(across < 0)
        assert down > 0
    assert 0.07 < min(shares) < 0.12
    assert 0.85 < max(shares) < 1.03
    assert 0.39 < np.mean(shares) < 0.47  # 0.43: large parts often do not fit in with their ratio
    assert 0.72 < min(ratios) < 0.78
    assert 1.28 < max(ratios) < 1.38
    assert 0.4 < np.mean(mirrored) < 0.6


@pytest.mark.parametrize(
    ("width", "height", "left", "top", "across", "down"),
    [(240, 6, 116, 0, 8, 6), (6, 240, 0, 116, 6, 8)],
)
def test_of_a_very_long_picture_the_middle_is_taken(
    width: int, height: int, left: int, top: int, across: int, down: int
) -> None:  # fmt: skip
    part = (
        coordinates(width, height)
        .crop((left, top, left + across, top + down))
        .resize((24, 24), Image.Resampling.BILINEAR)
    )
    for seed in range(4):
        out = pixels(preprocessing(24).random(coordinates(width, height), seeded(seed)))
        assert np.array_equal(out, pixels(part)) or np.array_equal(out[:, ::-1], pixels(part))


def test_inputs_are_normalised_by_channel() -> None:
    made = preprocessing(2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)).inputs(
        torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    )
    assert torch.allclose(made, torch.tensor([1.0, 3.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 2, 2))
    assert made.is_contiguous(memory_format=torch.channels_last)


def loader(folder: Path, batch: int = 5, **options: Any) -> Loader:
    return Loader(find_images(str(folder), "train"), batch, preprocessing(), **options)


def seen(batches: Loader) -> list[tuple[int, int]]:
    """Of each image its label, and the grey levels by which it is darker."""
    flat: list[tuple[Tensor, Tensor]] = [
        pair for inputs, labels in batches for pair in zip(inputs, labels, strict=True)
    ]
    for image, label in flat:
        assert image.amax((1, 2)).argmax() == label  # its class's colour
    return [(int(label), 200 - round(image.max().item())) for image, label in flat]


EVERY = [
    (0, 1),
    (0, 2),
    (0, 3),
    (0, 4),
    (0, 5),
    (1, 1),
    (1, 2),
    (1, 3),
    (1, 4),
    (2, 1),
    (2, 2),
    (2, 3),
]


def test_scoring_takes_every_image_in_order_and_draws_nothing(folder: Path) -> None:
    before = torch.get_rng_state()
    batches = loader(folder)
    sizes = [
        (tuple(inputs.shape), inputs.dtype, tuple(labels.shape), labels.dtype)
        for inputs, labels in batches
    ]
    assert sizes == [((n, 3, 20, 20), torch.float32, (n,), torch.int64) for n in (5, 5, 2)]
    assert len(batches) == 3
    assert seen(batches) == seen(batches) == EVERY
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch", "sizes"), [(5, [5, 5]), (12, [12]), (50, [12])])
def test_training_takes_whole_batches_of_other_images_each_time(
    batch: int, sizes: list[int], folder: Path
) -> None:
    torch.manual_seed(0)
    batches = loader(folder, batch, training=True)
    assert [len(labels) for _, labels in batches] == sizes
    assert len(batches) == len(sizes)
    first, second = seen(batches), seen(batches)
    assert first != second
    assert len(set(first)) == sum(sizes)
    assert set(first) <= set(EVERY)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_loaded_depends_on_the_global_generator_and_not_on_the_workers(
    training: bool, tmp_path: Path
) -> None:
    for i in range(6):
        save(tmp_path / "one" / f"{i}.png", coordinates(200 + i, 150))
    drawn = []
    for workers in (0, 2, 1):
        torch.manual_seed(7)
        drawn.append(
            [
                *loader(tmp_path, 3, workers=workers, training=training),
                (torch.rand(1), torch.rand(1)),
            ]
        )
    first, *others = [[tensor for pair in pairs for tensor in pair] for pairs in drawn]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    a, b = first[0][:2]
    assert not torch.allclose(a, b, atol=3) or not training  # each image is cropped by itself


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_pictures_of_any_mode_become_red_green_and_blue(mode: str, tmp_path: Path) -> None:
    ending = "tif" if mode == "CMYK" else "png"
    image = Image.new("L", (20, 20), 255)
    image = (
        Image.new("I;16", (20, 20), 255) if mode == "I;16" else image.convert("RGB").convert(mode)
    )
    save(tmp_path / "one" / f"a.{ending}", image)
    ((inputs, _),) = loader(tmp_path)
    assert inputs.shape == (1, 3, 20, 20)
    assert inputs.min() == inputs.max() == 255


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "gone"])
def test_a_broken_image_is_named(damage: str, workers: int, folder: Path) -> None:
    path = save(folder / "bee" / "broken.jpg", coordinates(64, 64))
    batches = loader(folder, workers=workers)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>not found</html>",
            "cut": whole[: len(whole) // 2],
            "gone": whole,
        }[damage]
    )
    if damage == "gone":
        path.unlink()
    with pytest.raises(FormatError, match=r"bee/broken\.jpg: not a readable image: \w+") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_the_parts_of_a_loader_are_the_rows_of_its_batches(folder: Path) -> None:
    whole = loader(folder, 4, training=True)
    torch.manual_seed(1)
    expected = list(whole)
    parts = []
    for number in range(2):
        torch.manual_seed(1)
        part = whole.part(number, 2)
        assert len(part) == len(whole)
        parts.append(list(part))
    for batch, first, second in zip(expected, *parts, strict=True):
        for values, one, other in zip(batch, first, second, strict=True):
            assert torch.equal(values, torch.cat([one, other]))
    with pytest.raises(RecipeError, match=r"^batch: expected a multiple of 3, .* ranks, got 4$"):
        whole.part(0, 3)
