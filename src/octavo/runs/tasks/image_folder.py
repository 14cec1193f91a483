"""The task `image_folder`: any classifier of torchvision, timm or one's own, on images in a folder
for each class.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo._seeds import seeded
from octavo.errors import RecipeError
from octavo.network.forward import call, device_of, evaluating
from octavo.runs.task import Batch
from octavo.runs.tasks.image_files import (
    INTERPOLATIONS,
    ImageFiles,
    Loader,
    Preprocessing,
    find_images,
)
from octavo.runs.tasks.images import check_options
from octavo.runs.tasks.networks import SOURCES, build

__all__ = ["ImageFolder"]

HOLDOUT_SEED = 123


@dataclass(frozen=True)
class ImageFolder:
    """Images in class folders, as ImageNet's, and a network that classifies them; needs Pillow.

    Args:
        train: a folder with one folder of images for each class.
        val: a folder like ``train``, with the same classes, for the metric of ``split: test``.
        network: torchvision's or timm's name of a network; or ``package.module:function`` or
            ``path/to/file.py:function``, which is called with ``num_classes`` and returns it.
        source: ``torchvision`` or ``timm``; ``auto`` takes the first that is installed and has the
            network.
        weights: ``default`` are the weights that come with the network. It may also be a name that
            torchvision or timm gives to weights, such as ``IMAGENET1K_V1``, or a safetensors file
            with the state dict. None gives a freshly initialised network, always the same.
        batch: images per batch.
        workers: the number of processes that load images; the images do not depend on it.
        split: ``test`` trains on all images of ``train`` and scores on ``val``; ``holdout`` never
            looks at these: it trains on nine tenths of ``train`` and scores on the others, always
            the same.
        calibration_size: the number of training images that `calibration` gives.
        size: height and width of the network's input, in pixels.
        resize: length of the short side before the centre is cut out; None: 8/7 of ``size``, 256
            for 224.
        interpolation: ``bilinear`` or ``bicubic``.
        mean: mean of the channels, on a scale of 0 to 1; the default is ImageNet's.
        std: standard deviation of the channels; the default is ImageNet's.
        top: an image counts as right if its class is among so many likeliest.
        device: the device of the network: ``auto`` is a GPU if torch sees one, else the CPU.

    """

    train: str
    val: str | None = None
    network: str = "resnet18"
    source: str = "auto"
    weights: str | None = "default"
    batch: int = 64
    workers: int = 0
    split: str = "test"
    calibration_size: int = 1024
    size: int = 224
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    top: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        check_options(batch=self.batch, split=self.split)
        for name, least in (("workers", 0), ("calibration_size", 1), ("size", 1), ("top", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name, known in (("source", SOURCES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.resize is not None and self.resize < self.size:
            raise RecipeError(f"resize: expected at least the size, {self.size}, got {self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise RecipeError(
                "mean, std: expected three numbers each, std positive, "
                f"got {self.mean} and {self.std}"
            )

    def model(self) -> nn.Module:
        """Return the network, in channels-last memory and evaluation mode.

        It is made at the first call and copied at every one.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = copy.deepcopy(self._network)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.eval()

    def calibration(self) -> Iterable[Tensor]:
        """Return training images in a fixed order, preprocessed as for `score`; they are loaded as
        they are asked for.
        """
        trained, _ = self._parts
        first = trained.pick(torch.arange(min(self.calibration_size, len(trained))))
        return (inputs for inputs, _ in self._batches(first))

    def train_batches(self) -> Loader:
        """Return one epoch of ``(inputs, labels)``: random crops, half of them mirrored."""
        return self._batches(self._parts[0], training=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of a batch."""
        inputs, labels = batch
        return F.cross_entropy(self._logits(call(model, inputs)), labels)

    def score(self, model: nn.Module) -> float:
        """Return the top-``top`` accuracy in per cent, on ``val`` or on the images held out."""
        device = device_of(model)
        files = self._scored
        right = 0
        with evaluating(model), torch.no_grad():
            for inputs, labels in self._batches(files):
                logits = self._logits(call(model, inputs.to(device)))
                likeliest = logits.topk(min(self.top, len(files.classes))).indices.cpu()
                right += int((likeliest == labels.unsqueeze(1)).sum())
        return 100 * right / len(files)

    def _logits(self, outputs: Any) -> Tensor:
        """Check the outputs of a network, which must be one for each class, and return them."""
        classes = len(self._parts[0].classes)
        if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] == classes:
            return outputs
        got = (
            f"shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else type(outputs).__name__
        )
        raise RecipeError(
            f"network {self.network!r}: expected outputs of shape (n, {classes}), one for each "
            f"class folder in {self.train}, got {got}"
        )

    def _batches(self, files: ImageFiles, *, training: bool = False) -> Loader:
        resize = self.size * 8 // 7 if self.resize is None else self.resize
        mean, std = ((r, g, b) for r, g, b in (self.mean, self.std))  # lists, out of YAML
        preprocessing = Preprocessing(self.size, resize, self.interpolation, mean, std)
        return Loader(files, self.batch, preprocessing, self.workers, training)

    @cached_property
    def _network(self) -> nn.Module:
        with seeded(0):
            return build(
                self.network, len(self._parts[0].classes), source=self.source, weights=self.weights
            )

    @cached_property
    def _parts(self) -> tuple[ImageFiles, ImageFiles]:
        """Images to train on, and the tenth of ``train`` that is held out, in an order that is
        random and always the same.
        """
        images = find_images(self.train, "train")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(HOLDOUT_SEED))
        size = max(1, len(order) // 10)  # images that are held out
        trained = order[:-size] if self.split == "holdout" else order
        return images.pick(trained), images.pick(order[-size:])

    @cached_property
    def _scored(self) -> ImageFiles:
        trained, held_out = self._parts
        return held_out if self.split == "holdout" else _validation(self.val, trained.classes)


def _validation(folder: str | None, classes: tuple[str, ...]) -> ImageFiles:
    """Find the images of the folder ``val``, which must have the classes of ``train``."""
    if folder is None:
        raise RecipeError("val: expected a folder to score on, got none; or set split: holdout")
    images = find_images(folder, "val")
    if differing := sorted(set(images.classes) ^ set(classes)):
        where = "val" if differing[0] in images.classes else "train"
        raise RecipeError(
            f"val: expected the same class folders as in train, {differing[0]!r} is only in {where}"
        )
    return images
