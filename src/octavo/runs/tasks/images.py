"""The common parts of the image tasks: augmented batches, random crops and accuracy, vectorised."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import RecipeError
from octavo.network.forward import device_of, evaluating

__all__ = ["Epoch", "accuracy", "check_options", "normalise", "random_crop"]

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Epoch:
    """One pass over ``images`` in random order: ``len()`` batches of ``(inputs, labels)``.

    The images that do not fill a last batch are left out (others each time), so that all batches
    are of one size and batch norm never meets a tiny one. The order comes from torch's global
    generator.

    Attributes:
        images: uint8, shape ``(n, height, width, channels)``.
        labels: int64, shape ``(n,)``.
        batch: images per batch.
        transform: from a batch of images to the network's inputs; may augment.

    """

    images: Tensor
    labels: Tensor
    batch: int
    transform: Transform

    def __len__(self) -> int:
        return max(1, len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images))
        for picked in order.split(self.batch)[: len(self)]:
            yield self.transform(self.images[picked]), self.labels[picked]


def random_crop(images: Tensor, padding: int, *, flip: bool = False) -> Tensor:
    """Pad each image with zeros on all sides and cut it back to its size at a random position.

    With ``flip``, half of the images are mirrored. This does to a whole batch what torchvision's
    ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip()`` do to an image. It draws from
    torch's global generator.

    Args:
        images: any dtype, shape ``(n, height, width, channels)``; the result has the same.
        padding: pixels on each side.
        flip: True mirrors half of the images.

    """
    n, height, width, _ = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1))
    rows = top + torch.arange(height)  # (n, height)
    columns = left + torch.arange(width)  # (n, width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``(images - mean) / std`` in float32.

    Shape ``(n, h, w, c)`` in, ``(n, c, h, w)`` in channels-last memory out.
    """
    return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, transform: Transform, *, batch: int = 500
) -> float:
    """Return the top-1 accuracy in per cent, in evaluation mode; the model is left as it was."""
    device = device_of(model)
    right = 0
    with evaluating(model), torch.no_grad():
        for part, truth in zip(images.split(batch), labels.split(batch), strict=True):
            guess = model(transform(part).to(device)).argmax(1).cpu()
            right += int((guess == truth).sum())
    return 100 * right / len(labels)


def check_options(*, batch: int, split: str) -> None:
    """Raise RecipeError unless the batch is at least 1 and the split is test or holdout."""
    if batch < 1:
        raise RecipeError(f"batch: expected at least 1, got {batch}")
    if split not in ("test", "holdout"):
        raise RecipeError(f"split: expected 'test' or 'holdout', got {split!r}")
