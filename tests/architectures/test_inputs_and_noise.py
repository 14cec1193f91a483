"""Networks that write into their inputs, and networks that draw random numbers in evaluation."""

import random
from pathlib import Path

import pytest
import torch
from tests.architectures.journey import applied, off, rounded, travel
from torch import Tensor, nn
from torch.nn import functional as F


class Centring(nn.Module):
    """It subtracts the mean in place, where the caller's tensor is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.last(self.first(x).relu_())  # type: ignore[no-any-return]


class Masking(nn.Module):
    """It fills masked positions of one of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        values.masked_fill_(mask, 3.0)
        return {"values": self.last(self.first(values).relu())}


class Dropping(nn.Module):
    """Dropout that stays switched on, for estimates of uncertainty."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.first(x).relu(), 0.3))  # type: ignore[no-any-return]


class Sampling(nn.Module):
    """The bottleneck of a variational autoencoder, sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.decode = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        code = self.mean(x) + torch.randn_like(x) * (0.3 * self.spread(x)).exp()
        return self.decode(code)  # type: ignore[no-any-return]


class Noisy(nn.Module):
    """Its noise comes from Python's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() + random.gauss(0, 1))  # type: ignore[no-any-return]


def normal(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size, 8, generator=generator) for size in sizes]


def test_an_argument_that_is_written_into(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Centring().eval()
    batches = normal(40, 40, 9)
    journey = travel(model, batches, tmp_path)
    assert not journey.refusal
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest


def test_a_keyword_argument_that_is_written_into(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Masking().eval()
    batches = [{"values": x, "mask": x > 1} for x in normal(40, 40)]
    journey = travel(model, batches, tmp_path)
    assert not journey.refusal
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest


@pytest.mark.parametrize("build", [Dropping, Sampling])
def test_random_numbers_of_torch(build: type[nn.Module], tmp_path: Path) -> None:
    """Both networks see the same draws, so that least squares finds no noise to shrink."""
    torch.manual_seed(0)
    model = build().eval()
    batches = normal(64, 64)
    journey = travel(model, batches, tmp_path)
    assert "switch off what draws random numbers" in journey.refusal
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest
    for name, layer in journey.packed.layers.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        assert 0.8 < float(layer.weight().norm() / weight.norm()) < 1.2, name


def test_random_numbers_from_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Noisy().eval()
    batches = normal(64, 64)
    with pytest.warns(UserWarning, match="two passes of one batch give different outputs"):
        journey = travel(model, batches, tmp_path)
    assert "switch off what draws random numbers" in journey.refusal
    for name, layer in journey.packed.layers.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        assert 0.8 < float(layer.weight().norm() / weight.norm()) < 1.2, name
    applied(model, journey.refitted)
