"""ResNet-8, the image classifier of MLPerf Tiny: 78,186 weights, CIFAR-10.

Incremental quantization of it is the recipe resnet8-inq-3bit.yaml.
"""

from pathlib import Path

import safetensors.torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.runs.tasks.cifar10 import MEAN, STD, Cifar10

__all__ = ["ResNet8OnCifar10", "resnet8"]

WEIGHTS = Path("~/.cache/octavo/resnet8-cifar10.safetensors").expanduser()
# Channels before and after each convolution, its kernel and its stride.
CONVOLUTIONS = (
    (3, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 32, 3, 2),
    (32, 32, 3, 1),
    (16, 32, 1, 2),
    (32, 64, 3, 2),
    (64, 64, 3, 1),
    (32, 64, 1, 2),
)
NORMS = (16, 16, 16, 32, 32, 64, 64)


class ResNet8(nn.Module):
    """The network for images that are normalised as octavo's task ``cifar10`` does; its own inputs
    are 0 to 255.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.c = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
            for before, after, kernel, stride in CONVOLUTIONS
        )
        self.b = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-3) for channels in NORMS)
        self.fc = nn.Linear(64, 10)
        self.mean = mean.view(-1, 1, 1)
        self.std = std.view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, 3, 32, 32)`` to logits ``(n, 10)``."""
        c, b = self.c, self.b
        x = x * self.std + self.mean
        x = F.relu(b[0](c[0](x)))
        x = F.relu(x + b[2](c[2](F.relu(b[1](c[1](x))))))
        for conv, norm in ((3, 3), (6, 5)):  # the blocks that halve the image
            padded = F.pad(x, (0, 1, 0, 1))  # at the right and at the bottom
            inner = F.relu(b[norm](c[conv](padded)))
            x = F.relu(c[conv + 2](x) + b[norm + 1](c[conv + 1](inner)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def resnet8(mean: Tensor, std: Tensor) -> nn.Module:
    """Return the trained network."""
    network = ResNet8(mean, std)
    network.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    return network.eval()


class ResNet8OnCifar10(Cifar10):
    """The task ``cifar10`` with ResNet-8 as the network of depth 8."""

    def model(self) -> nn.Module:
        """Return ResNet-8, or the ResNet of another depth."""
        return resnet8(MEAN, STD) if self.depth == 8 else super().model()
