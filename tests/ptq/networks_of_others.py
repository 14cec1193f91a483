"""Layers whose weight is not what is multiplied, and networks that do more than compute."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Standardized(nn.Linear):
    """Weight standardization."""

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, centred / self.weight.std(1, keepdim=True), self.bias)


class Scaled(nn.Linear):
    """It multiplies its outputs, as equalized learning rates do."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Masked(nn.Linear):
    """A third of its weights count nothing, whatever their values are."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.arange(self.in_features) % 3 > 0
        return F.linear(x, self.weight * kept, self.bias)


class Noisy(nn.Linear):
    """It drops inputs in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.2))


class Keeping(nn.Linear):
    """It adds the outputs to what it keeps of them on the module."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return super().forward(x) + self.kept.mean(1, keepdim=True)


KINDS: tuple[type[nn.Linear], ...] = (nn.Linear, Standardized, Scaled, Masked, Noisy, Keeping)


class Three(nn.Module):
    """A layer between two plain ones, which has drift to make up for and makes some itself."""

    def __init__(self, kind: type[nn.Linear], width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = kind(width, width)
        self.third = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]


def made(kind: type[nn.Linear], seed: int = 0, width: int = 16) -> Any:
    torch.manual_seed(seed)
    return Three(kind, width).eval()
