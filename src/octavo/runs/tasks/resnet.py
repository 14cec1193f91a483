"""The residual networks for CIFAR-10 of He et al. (arXiv 1512.03385, section 4.2), shortcuts of
option A.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import RecipeError

__all__ = ["ResNet", "resnet"]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: subsampled, its new channels filled with
    zeros.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.added = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Three groups of ``blocks`` blocks with 16, 32 and 64 channels, for ten classes: depth ``6 *
    blocks + 2``.

    State-dict keys: ``conv1``, ``bn1``, ``layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}``, ``linear``.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(16, 16, blocks)
        self.layer2 = _group(16, 32, blocks)
        self.layer3 = _group(32, 64, blocks)
        self.linear = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, 3, 32, 32)`` to logits ``(n, 10)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.mean(x, (2, 3)))
        return logits


def resnet(depth: int) -> ResNet:
    """Make the network of that depth, ``6n + 2`` (20, 32, 44, 56, 110).

    Its weights are drawn from torch's global generator.
    """
    if depth < 8 or depth % 6 != 2:
        raise RecipeError(f"depth: expected 6n + 2, such as 20, 32, 44, 56 or 110, got {depth}")
    return ResNet((depth - 2) // 6)


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Block(inputs if i == 0 else outputs, outputs) for i in range(blocks)))
