"""Layers whose weight is not what is multiplied, is used twice, is at two places, or has zeros."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.architectures.journey import correlated, travel_well
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16


class StandardizedConv(nn.Conv2d):
    """A convolution with weight standardization, as in BiT and NFNets."""

    def forward(self, x: Tensor) -> Tensor:
        dims = (1, 2, 3)
        centred = self.weight - self.weight.mean(dims, keepdim=True)
        weight = centred / (self.weight.std(dims, keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Equalized(nn.Linear):
    """A linear layer with an equalized learning rate, as in StyleGAN: it scales its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2.5 * self.weight, self.bias)


class Autoregressive(nn.Linear):
    """A mask over the weight lets outputs see the inputs before them only, as in MADE."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.tril(-1), self.bias)


class Standardizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = StandardizedConv(2, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.second, self.head = StandardizedConv(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Recycling(nn.Module):
    """One block that is called three times, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = x + self.block(x).tanh()
        return self.last(x)  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """Two parameters over one piece of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.decode = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.decode.weight.data = self.encode.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.middle(self.encode(x).relu()).relu())  # type: ignore[no-any-return]


class Bracketed(nn.Module):
    """Its layers' names are patterns: one of them matches the other, and not itself."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("a[1]", nn.Linear(WIDTH, WIDTH))
        self.add_module("a1", nn.Linear(WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.get_submodule("a[1]")(x).relu()
        return self.get_submodule("a1")(hidden)  # type: ignore[no-any-return]


class Mobile(nn.Module):
    """Depthwise convolutions behind batch norms, an activation that saturates, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(2, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.second = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.gate, self.project = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.expand(x)))
        x = F.relu6(self.second(self.depthwise(x)))
        gated = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.project(gated).mean((2, 3))  # type: ignore[no-any-return]


def sparse() -> nn.Module:
    """A layer that has one zero by chance, and one that was pruned."""
    first, second, last = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 4)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    with torch.no_grad():
        first.weight[3, 5] = 0
        second.weight[:, ::2] = 0
    return model


def plain(kind: type[nn.Linear]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), kind(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight standardization": (Standardizing, (2, 6, 6)),
    "equalized learning rate": (lambda: plain(Equalized), (WIDTH,)),
    "autoregressive mask": (lambda: plain(Autoregressive), (WIDTH,)),
    "a block that is called thrice": (Recycling, (WIDTH,)),
    "names that are patterns": (Bracketed, (WIDTH,)),
    "depthwise": (Mobile, (2, 6, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights(name: str, tmp_path: Path) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    travel_well(build().eval(), correlated(*[(size, *shape) for size in (40, 40, 9)]), tmp_path)


def test_weights_that_are_tied_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    journey = travel_well(Autoencoder().eval(), correlated((80, WIDTH)), tmp_path)
    assert set(journey.plan) == {"encode", "middle"}
    state = journey.network.state_dict()
    assert torch.equal(state["encode.weight"], state["decode.weight"])


def test_zeros_that_were_pruned_and_one_by_chance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    journey = travel_well(sparse().eval(), correlated((80, 40)), tmp_path)
    weight = journey.network.get_parameter("2.weight")
    assert not weight[:, ::2].any()
    assert weight[:, 1::2].ne(0).float().mean() > 0.5
