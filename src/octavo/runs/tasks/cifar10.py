"""The task `cifar10`: ResNets on CIFAR-10, from an npz file that is made from torchvision or
datasets where missing.
"""

import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo._io import write_atomically
from octavo._seeds import seeded
from octavo.errors import FormatError, OctavoError, RecipeError
from octavo.network.forward import call
from octavo.runs.task import Batch
from octavo.runs.tasks.images import Epoch, accuracy, check_options, normalise, random_crop
from octavo.runs.tasks.networks import load_weights
from octavo.runs.tasks.resnet import resnet

__all__ = ["Cifar10"]

Part = tuple[Tensor, Tensor]  # images and labels
Arrays = dict[str, np.ndarray]

HOLDOUT_SEED = 123
# The errors of numpy for files that are not an npz, or are cut short, altered, or hold something
# else.
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    AttributeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)
# ImageNet's, on a scale of 0 to 255: the published networks were trained with them.
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
STD = 255 * torch.tensor([0.229, 0.224, 0.225])
EXPECTED = (
    "x_train (50000, 32, 32, 3) uint8, y_train (50000,) int64, "
    "and x_test, y_test with 10000 likewise"
)


class Cifar10:
    """ResNet-20, 32, 44, 56 or 110 on CIFAR-10, augmented by random crops (padding 4) and flips.

    Args:
        depth: of the network, ``6n + 2``.
        weights: a safetensors file with its state dict; None gives a freshly initialised network,
            always the same.
        data: an npz file with the arrays ``x_train, y_train, x_test, y_test``. Where it is missing
            and torchvision or Hugging Face ``datasets`` is installed, the data are fetched and the
            file is written.
        batch: images per training and calibration batch.
        split: ``test`` trains on all 50,000 training images and scores on the 10,000 test images;
            ``holdout`` never looks at these: it trains on 45,000 and scores on the other 5,000
            training images, always the same.
        calibration_size: how many training images `calibration` gives; the same images for both
            splits.

    """

    def __init__(
        self,
        depth: int = 20,
        weights: str | None = None,
        data: str = "~/.cache/octavo/cifar10.npz",
        batch: int = 128,
        split: str = "test",
        calibration_size: int = 1024,
    ) -> None:
        check_options(batch=batch, split=split)
        if calibration_size < 1:
            raise RecipeError(f"calibration_size: expected at least 1, got {calibration_size}")
        self.depth = depth
        self.batch = batch
        self.split = split
        self.calibration_size = calibration_size
        self.weights = None if weights is None else Path(weights).expanduser()
        self.data = Path(data).expanduser()

    def model(self) -> nn.Module:
        """Return the network with its weights, in channels-last memory and evaluation mode."""
        with seeded(0):
            model = resnet(self.depth)
        if self.weights is not None:
            load_weights(model, self.weights)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.eval()

    def calibration(self) -> Iterable[Tensor]:
        """Return training images, without augmentation and in a fixed order."""
        images, _ = self._train[0]
        return [_inputs(batch) for batch in images[: self.calibration_size].split(self.batch)]

    def train_batches(self) -> Epoch:
        """Return one epoch of ``(inputs, labels)``: ``(batch, 3, 32, 32)`` and ``(batch,)``."""
        return Epoch(
            *self._train[0], self.batch, lambda images: _inputs(random_crop(images, 4, flip=True))
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of a batch."""
        inputs, labels = batch
        return F.cross_entropy(call(model, inputs), labels)

    def score(self, model: nn.Module) -> float:
        """Return the top-1 accuracy in per cent on the test images, or on those held out."""
        return accuracy(model, *self._scored, _inputs)

    @cached_property
    def _train(self) -> tuple[Part, Part]:
        """The part to train on and the part held out, in a random order that is always the same."""
        images, labels = _read(self.data, "train")
        size = len(images) // 10  # images that are held out
        generator = torch.Generator().manual_seed(HOLDOUT_SEED)
        order = torch.randperm(len(images), generator=generator).roll(-size)
        trained = order[:-size] if self.split == "holdout" else order
        held_out = order[-size:]
        return (images[trained], labels[trained]), (images[held_out], labels[held_out])

    @cached_property
    def _scored(self) -> Part:
        return self._train[1] if self.split == "holdout" else _read(self.data, "test")


def _inputs(images: Tensor) -> Tensor:
    return normalise(images, MEAN, STD)


def _read(path: Path, part: str) -> Part:
    """Read images ``(n, 32, 32, 3)`` uint8 and labels ``(n,)`` int64 of ``train`` or ``test``.

    A missing file is made first.
    """
    if not path.exists():
        _write(path, _fetch(path))
    try:
        # Opened here, as np.load leaves a damaged file open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            images = file[f"x_{part}"]
            labels = file[f"y_{part}"]
    except DAMAGE as error:
        raise FormatError(
            f"{path}: expected an npz file with {EXPECTED}; {type(error).__name__}: {error}"
        ) from error
    if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8 or not len(images):
        raise FormatError(
            f"{path}: x_{part}: expected (n, 32, 32, 3) uint8, got {images.shape} {images.dtype}"
        )
    if (
        labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
        or labels.min() < 0
        or labels.max() > 9
    ):
        raise FormatError(
            f"{path}: y_{part}: expected {len(images)} integers from 0 to 9, "
            f"got {labels.shape} {labels.dtype}"
        )
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _write(path: Path, arrays: Arrays) -> None:
    # The stub takes the first of the arrays for the option allow_pickle.
    write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _fetch(path: Path) -> Arrays:
    """Fetch all of CIFAR-10 with the first library that is installed and has it."""
    causes = []
    for source in (_from_torchvision, _from_datasets):
        try:
            return source()
        except ImportError as error:
            causes.append(f"{error.name or 'a library'} is not installed")
        except Exception as error:  # noqa: BLE001 - the next library may have it
            name = source.__name__.removeprefix("_from_")
            said = " ".join(str(error).split())
            causes.append(f"{name} failed: {type(error).__name__}: {said}")
    raise OctavoError(
        f"task 'cifar10': there is no file {path}; put an npz file with {EXPECTED} there, or name "
        "another by the option data, or `pip install datasets` and be online, and it is fetched "
        f"({'; '.join(causes)})"
    )


def _from_torchvision() -> Arrays:
    from torchvision.datasets import CIFAR10

    with tempfile.TemporaryDirectory() as folder:
        train, test = (CIFAR10(folder, train=train, download=True) for train in (True, False))
    return _arrays((train.data, train.targets), (test.data, test.targets))


def _from_datasets() -> Arrays:
    from datasets import load_dataset

    data = load_dataset("uoft-cs/cifar10")
    train, test = (
        (np.stack([np.asarray(image) for image in data[part]["img"]]), list(data[part]["label"]))
        for part in ("train", "test")
    )
    return _arrays(train, test)


def _arrays(train: tuple[np.ndarray, list[int]], test: tuple[np.ndarray, list[int]]) -> Arrays:
    return {
        "x_train": train[0],
        "y_train": np.array(train[1], np.int64),
        "x_test": test[0],
        "y_test": np.array(test[1], np.int64),
    }
