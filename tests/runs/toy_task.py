"""A task for a linear layer, whose batches and loss a test chooses."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.runs.task import Batch

Array = NDArray[np.float64]
BATCHES, ROWS, INPUTS, CLASSES = 5, 6, 4, 3


def data(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(BATCHES, ROWS, INPUTS, generator=generator)
    labels = torch.randint(CLASSES, (BATCHES, ROWS), generator=generator)
    return list(zip(inputs, labels, strict=True))


def linear(seed: int) -> nn.Linear:
    model = nn.Linear(INPUTS, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            )
    return model


class Toy:
    """A task whose batches and loss the test chooses."""

    def __init__(
        self,
        batches: Callable[[], Iterable[Any]] = data,
        loss: Callable[[nn.Module, Batch], Any] | None = None,
    ):
        self.batches, self.own_loss = batches, loss

    def model(self) -> nn.Module:
        return linear(1)

    def calibration(self) -> list[Tensor]:
        return []

    def train_batches(self) -> Iterable[Batch]:
        return self.batches()

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        return (
            F.cross_entropy(model(batch[0]), batch[1])
            if self.own_loss is None
            else self.own_loss(model, batch)
        )

    def score(self, model: nn.Module) -> float:
        raise AssertionError("retraining must not score")


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def poisoned(at: int) -> list[tuple[Tensor, Tensor]]:
    batches = data()
    batches[at] = (torch.full_like(batches[at][0], math.nan), batches[at][1])
    return batches


class Returns(nn.Linear):
    """A layer whose output is wrapped in something."""

    def __init__(self, wrap: Callable[[Tensor], Any], classes: int = CLASSES) -> None:
        super().__init__(INPUTS, classes)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))
