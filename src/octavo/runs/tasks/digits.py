"""The task `digits`: scikit-learn's 1,797 handwritten digits and a small network that trains itself
in seconds.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo._seeds import seeded
from octavo.errors import OctavoError, install
from octavo.network.forward import call
from octavo.progress import Event, Progress, silent
from octavo.runs.task import Batch
from octavo.runs.tasks.images import Epoch, accuracy, check_options, normalise, random_crop

__all__ = ["Digits"]

EPOCHS = 25
TRAINING = "training the full-precision network"
SPLIT_SEED = 1797
MEAN = torch.tensor([4.88])  # of the pixels, which are 0 to 16
STD = torch.tensor([6.02])


class Digits:
    """Handwritten digits of 8 x 8 pixels: 1,077 to train on, 360 held out, 360 to test with; needs
    scikit-learn.

    Args:
        seed: of the network's initial weights and its training; the split is always the same.
        batch: images per training batch.
        split: which part `score` uses, ``test`` or ``holdout``.

    """

    def __init__(self, seed: int = 0, batch: int = 64, split: str = "test") -> None:
        check_options(batch=batch, split=split)
        self.seed = seed
        self.batch = batch
        self.split = split
        self._trained: nn.Module | None = None

    def model(self, progress: Progress = silent) -> nn.Module:
        """Return the small network, trained at the first call and copied at every one.

        The global generator is not touched. ``progress`` is called after each epoch of the
        training.
        """
        if self._trained is None:
            self._trained = self._train(progress)
        return copy.deepcopy(self._trained)

    def calibration(self) -> Iterable[Tensor]:
        """Return the training images, without augmentation and in a fixed order."""
        images, _ = self._parts["train"]
        return [_inputs(batch) for batch in images.split(self.batch)]

    def train_batches(self) -> Epoch:
        """Return one epoch, each image shifted by up to one pixel."""
        return Epoch(
            *self._parts["train"], self.batch, lambda images: _inputs(random_crop(images, 1))
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of a batch."""
        inputs, labels = batch
        return F.cross_entropy(call(model, inputs), labels)

    def score(self, model: nn.Module) -> float:
        """Return the accuracy in per cent on the part called ``split``."""
        return accuracy(model, *self._parts[self.split], _inputs)

    @cached_property
    def _parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        images, labels = _load()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        parts = zip(("train", "holdout", "test"), order.split([1077, 360, 360]), strict=True)
        return {name: (images[index], labels[index]) for name, index in parts}

    def _train(self, progress: Progress) -> nn.Module:
        progress(Event("train", 0, EPOCHS, TRAINING))
        with seeded(self.seed):
            model = _network()
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
            steps = EPOCHS * len(self.train_batches())
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=0.02, total_steps=steps
            )
            for epoch in range(1, EPOCHS + 1):
                for batch in self.train_batches():
                    optimizer.zero_grad()
                    self.loss(model, batch).backward()
                    optimizer.step()
                    schedule.step()
                progress(Event("train", epoch, EPOCHS, TRAINING))
        return model.eval()


def _network() -> nn.Module:
    """Return three convolutions with batch norm and a classifier: 23,824 weights."""
    layers: dict[str, nn.Module] = {}
    for i, (inputs, outputs) in enumerate([(1, 16), (16, 32), (32, 64)], start=1):
        layers[f"conv{i}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.AdaptiveMaxPool2d(4) if i < 3 else nn.AdaptiveAvgPool2d(1)
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(64, 10)}
    return nn.Sequential(OrderedDict(layers))


def _inputs(images: Tensor) -> Tensor:
    return normalise(images, MEAN, STD)


def _load() -> tuple[Tensor, Tensor]:
    """Return images as uint8 of shape ``(1797, 8, 8, 1)``, and labels as int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise OctavoError(f"task 'digits' needs scikit-learn: {install('demo')}") from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.uint8)[..., None]
    labels = torch.tensor(data.target, dtype=torch.int64)
    return images, labels
