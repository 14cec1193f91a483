"""The network and the data of the examples: scikit-learn's handwritten digits, 8 x 8 pixels."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 60


def parts() -> tuple[TensorDataset, TensorDataset]:
    """Return 1,200 pictures with their digits to train on, and 597 to test with."""
    pictures, digits = load_digits(return_X_y=True)
    inputs = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return TensorDataset(inputs[train], labels[train]), TensorDataset(inputs[test], labels[test])


def batches() -> DataLoader[tuple[Tensor, ...]]:
    """Return the training pictures in batches, in a new order for every epoch."""
    return DataLoader(parts()[0], BATCH, shuffle=True)


def network() -> nn.Module:
    """Return a small convolutional network with 26,000 weights, not trained."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of test pictures whose digit is recognized, in per cent."""
    inputs, labels = parts()[1].tensors
    return float(100 * (model.eval()(inputs).argmax(1) == labels).float().mean())
