"""Images in files, one folder for each class: they are found, decoded by Pillow, cropped, and put
in batches by torch's loader.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octavo.errors import FormatError, OctavoError, RecipeError, brief, install
from octavo.runs.tasks.images import normalise

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["INTERPOLATIONS", "ImageFiles", "Loader", "Preprocessing", "find_images"]

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
INTERPOLATIONS = ("bilinear", "bicubic")
# A training crop, as in Szegedy et al. (arXiv 1409.4842) and in torchvision.
AREA = (0.08, 1.0)  # the least and the largest share of the image
RATIO = (3 / 4, 4 / 3)  # the least and the largest ratio of width to height
TRIES = 10  # draws until the crop fits into the image

Crop: TypeAlias = "Callable[[Image, torch.Generator], Image]"
# The key of an example: its index among the files, and the seed of its augmentation.
Key: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class ImageFiles:
    """The files of images with their labels; label ``i`` stands for ``classes[i]``."""

    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def pick(self, indices: Tensor) -> "ImageFiles":
        """Return the files at ``indices``, in that order."""
        return ImageFiles(self.classes, tuple(self.files[index] for index in indices.tolist()))


def find_images(folder: str, option: str) -> ImageFiles:
    """Find the images below each class folder of ``folder``, as torchvision's ImageFolder does.

    Classes and files are in alphabetical order. Names that begin with a dot are left out.
    ``option`` is the name of the folder in errors.

    Raises:
        RecipeError: there is no such folder, no class folder in it, or no image in one of these.

    """
    root = Path(folder).expanduser()
    form = "a folder with one folder of images for each class"
    if not root.is_dir():
        raise RecipeError(f"{option}: expected {form}, there is none at {root}")
    classes = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise RecipeError(f"{option}: expected {form}, there is no folder in {root}")
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        paths = _images_below(root / name)
        if not paths:
            raise RecipeError(
                f"{option}: expected images in every class folder, there is none in {root / name}"
            )
        files += [(path, label) for path in paths]
    return ImageFiles(tuple(classes), tuple(files))


def _images_below(folder: Path) -> list[str]:
    return sorted(
        str(Path(place) / name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS) and not name.startswith(".")
    )


@dataclass(frozen=True)
class Preprocessing:
    """The way from a picture to the network's input: torchvision's transforms for ImageNet.

    Pillow does them.

    Attributes:
        size: height and width of the network's input, in pixels.
        resize: length of the short side before the centre is cut out, for scoring.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: the mean of the channels red, green and blue, on a scale of 0 to 1; it is subtracted.
        std: the standard deviation of the channels; the difference is divided by it.

    """

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def centre(self, image: "Image", _: torch.Generator) -> "Image":
        """Resize the short side and cut the centre out."""
        width, height = image.size
        short = min(width, height)
        image = self._resized(
            image, int(self.resize * width / short), int(self.resize * height / short)
        )
        left, top = (round((side - self.size) / 2) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def random(self, image: "Image", generator: torch.Generator) -> "Image":
        """Resize a random part to the whole, and mirror it half of the time.

        This is torchvision's RandomResizedCrop and RandomHorizontalFlip. It draws the numbers that
        these draw, in their order, from ``generator``.
        """
        left, top, width, height = _random_box(*image.size, generator)
        image = self._resized(
            image.crop((left, top, left + width, top + height)), self.size, self.size
        )
        return _mirrored(image) if torch.rand(1, generator=generator).item() < 0.5 else image

    def inputs(self, images: Tensor) -> Tensor:
        """Turn pixels from 0 to 255 into the network's inputs.

        Shape ``(n, size, size, 3)`` in, ``(n, 3, size, size)`` in channels-last memory out.
        """
        return normalise(images, 255 * torch.tensor(self.mean), 255 * torch.tensor(self.std))

    def _resized(self, image: "Image", width: int, height: int) -> "Image":
        from PIL.Image import Resampling

        return image.resize((width, height), Resampling[self.interpolation.upper()])


def _random_box(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a part with a random share of the area and a random ratio of its sides.

    Returns:
        Left, top, width and height.

    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    for _ in range(TRIES):
        area = width * height * uniform(*AREA).item()
        ratio = torch.exp(uniform(math.log(RATIO[0]), math.log(RATIO[1]))).item()
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return left, top, w, h
    w = min(width, round(height * RATIO[1]))  # a very long picture: the largest part in its middle
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def _mirrored(image: "Image") -> "Image":
    from PIL.Image import Transpose

    return image.transpose(Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True)
class Loader:
    """One pass over files in batches ``(inputs, labels)``.

    Inputs are float32 of shape ``(n, 3, size, size)``, labels int64 of shape ``(n,)``. Decoding and
    augmentation go to ``workers`` processes; the batches do not depend on their number.

    Attributes:
        files: the files to load.
        batch: images per batch.
        preprocessing: the way from a picture to an input.
        workers: the number of processes that load; with 0, this process loads.
        training: True if order and crops are random, drawn from torch's global generator, and the
            images that do not fill a last batch are left out (others each time). If false, all
            images come in order, and their centres are cut out.
        rows: the part of each batch that is loaded: its number, from 0, and how many parts there
            are.

    """

    files: ImageFiles
    batch: int
    preprocessing: Preprocessing
    workers: int = 0
    training: bool = False
    rows: tuple[int, int] = (0, 1)

    def part(self, number: int, count: int) -> "Loader":
        """Return the loader of the same batches that loads one of ``count`` equal parts of each.

        Raises:
            RecipeError: there are no equal parts.

        """
        size = min(self.batch, len(self.files))
        if size % count:
            raise RecipeError(
                f"batch: expected a multiple of {count}, the number of ranks, got {size}"
            )
        return replace(self, rows=(number, count))

    def __len__(self) -> int:
        if self.training:
            return max(1, len(self.files) // self.batch)
        return math.ceil(len(self.files) / self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.files)
        crop: Crop = self.preprocessing.centre
        if self.training:
            crop = self.preprocessing.random
            order = torch.randperm(count)
            seeds = torch.randint(1 << 62, (count,))
        else:
            order = torch.arange(count)
            seeds = torch.zeros(count, dtype=torch.int64)
        keys = list(zip(order.tolist(), seeds.tolist(), strict=True))
        batches = DataLoader(
            _Pictures(self.files.files, crop),
            batch_sampler=[
                self._own(keys[start : start + self.batch])
                for start in range(0, len(self) * self.batch, self.batch)
            ],
            num_workers=self.workers,
            collate_fn=_Collate(self.preprocessing),
            pin_memory=torch.cuda.is_available(),
            # Without it, torch draws a seed for the workers, which need none, from the global one.
            generator=torch.Generator(),
        )
        for batch in batches:
            if isinstance(batch, OctavoError):
                raise batch
            yield batch

    def _own(self, keys: list[Key]) -> list[Key]:
        """Return this loader's part of the keys of a batch."""
        number, count = self.rows
        return keys[number * len(keys) // count : (number + 1) * len(keys) // count]


@dataclass(frozen=True)
class _Pictures(Dataset[tuple[Tensor, int] | OctavoError]):
    """The data set that loads a file as pixels ``(size, size, 3)`` uint8 and a label.

    An error is returned, not raised, because torch would reword the error of a worker.
    """

    files: tuple[tuple[str, int], ...]
    crop: Crop

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | OctavoError:
        index, seed = key
        path, label = self.files[index]
        try:
            image = self.crop(_decoded(path), torch.Generator().manual_seed(seed))
        except OctavoError as error:
            return error
        return torch.from_numpy(np.array(image)), label


@dataclass(frozen=True)
class _Collate:
    """The function that puts pictures into a batch, or returns the first error among them."""

    preprocessing: Preprocessing

    def __call__(
        self, examples: list[tuple[Tensor, int] | OctavoError]
    ) -> tuple[Tensor, Tensor] | OctavoError:
        loaded: list[tuple[Tensor, int]] = []
        for example in examples:
            if isinstance(example, OctavoError):
                return example
            loaded.append(example)
        images = torch.stack([pixels for pixels, _ in loaded])
        labels = torch.tensor([label for _, label in loaded])
        return self.preprocessing.inputs(images), labels


def _decoded(path: str) -> "Image":
    """Read the picture in a file, in red, green and blue."""
    try:
        from PIL import Image
    except ImportError as error:
        raise OctavoError(f"task 'image_folder' needs Pillow: {install('vision')}") from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # each codec has its own
        raise FormatError(f"{path}: not a readable image: {brief(error)}") from error
