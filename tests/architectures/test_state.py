"""Networks that keep state on their modules between layers or between calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures.journey import applied, off, outputs, rounded, travel
from torch import Tensor, nn


class UNet(nn.Module):
    """Its skip connections wait in a list on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)])
        self.up = nn.ModuleList([nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)])
        self.skips: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down:
            x = layer(x).relu()
            self.skips.append(x)
        for layer in self.up:
            x = layer(x + self.skips.pop())
        return x


class Attending(nn.Module):
    """It keeps the attention of its last call, as many do for pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)
        self.attention: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.attention = (self.query(x) @ self.key(x).mT / 8**0.5).softmax(-1)
        return self.out(self.attention @ self.value(x))  # type: ignore[no-any-return]


class Windowed(nn.Module):
    """It keeps a table for the length of the inputs until another length comes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.table = torch.zeros(0, 8)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) != x.shape[1]:
            self.table = torch.linspace(0, 1, 8 * x.shape[1]).view(-1, 8)
        x = self.first(x).relu() + self.table
        return self.last(x + self.table[: x.shape[1]])  # type: ignore[no-any-return]


class Counting(nn.Module):
    """It counts its calls, which changes nothing of what it returns."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.seen: dict[str, int] = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen["calls"] += 1
        return self.layers(x)  # type: ignore[no-any-return]


class Streaming(nn.Module):
    """A convolution over time that is handed a chunk in each call, and keeps the end of it."""

    before_first: Tensor
    before_last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(4, 8, 3), nn.Conv1d(8, 4, 3)
        self.register_buffer("before_first", torch.zeros(1, 4, 2))
        self.register_buffer("before_last", torch.zeros(1, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.before_first, x], 2)
        self.before_first = x[:, :, -2:]
        x = torch.cat([self.before_last, self.first(x).relu()], 2)
        self.before_last.copy_(x[:, :, -2:])
        return self.last(x)  # type: ignore[no-any-return]


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator) for shape in shapes]


INDEPENDENT: dict[str, tuple[Callable[[], nn.Module], list[Tensor]]] = {
    "U-Net": (UNet, normal((8, 2, 6, 6), (8, 2, 6, 6), (3, 2, 6, 6))),
    "attention": (Attending, normal((8, 6, 8), (8, 5, 8))),
    "table": (Windowed, normal((8, 6, 8), (8, 6, 8), (8, 5, 8))),
    "counter": (Counting, normal((40, 8), (40, 8), (9, 8))),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_state_within_a_call(name: str, tmp_path: Path) -> None:
    build, batches = INDEPENDENT[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        model(batches[0])  # as users do before anything else
    journey = travel(model, batches, tmp_path)
    assert not journey.refusal
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest
    assert off(model, applied(model, journey.refitted), batches) < nearest


def test_state_from_call_to_call(tmp_path: Path) -> None:
    """The stream goes on from batch to batch, which no file of ONNX can do."""
    torch.manual_seed(0)
    model: Any = Streaming().eval()
    chunks = normal(*[(1, 4, 12)] * 8)
    journey = travel(model, chunks, tmp_path)
    assert journey.refusal.startswith("Streaming: torch cannot trace it")
    assert not journey.network.get_buffer("before_last").any()
    nearest = off(model, rounded(model, journey.packed.plan), chunks)
    assert off(model, journey.network, chunks) < nearest
    whole = model.last(model.first(nn.functional.pad(torch.cat(chunks, 2), (2, 0))).relu())
    streamed = torch.cat([one[""] for one in outputs(model, chunks)], 2)
    assert torch.allclose(streamed[:, :, 2:], whole, atol=1e-5)
