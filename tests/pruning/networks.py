"""The network that the tests of pruning share, and its inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def images(seed: int = 0) -> Tensor:
    return torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
