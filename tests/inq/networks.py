"""Small networks for the tests of INQ, and what moves their weights."""

import runpy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from octavo.inq.incremental import Incremental
from octavo.inq.parametrization import FrozenWeights
from octavo.network.forward import call, observing

ORDERS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "orders.py"))
far = ORDERS["far"]  # an order that is a function: the weights farthest from their level first


class Net(nn.Module):
    """97 and 5 weights, so that no portion of them is a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(97, 1, bias=False),
            nn.BatchNorm1d(5),
            nn.Linear(1, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.last(self.first(x)))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(seed: int) -> Tensor:
    return torch.randn(8, 97, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: int = 3, seed: int = 0) -> None:
    """Some steps with a new optimizer, as the paper resets it at each stage."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(100 * seed + step)), torch.arange(8) % 5).backward()
        optimizer.step()


def seen(model: nn.Module, names: Any = ("first", "last")) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}  # type: ignore[operator]


def run(incremental: Incremental, *, stop: int | None = None) -> None:
    for stage in incremental:
        train(incremental.model, seed=stage.index)
        if stage.index == stop:
            return


class First(nn.Module):
    """Of what a recurrent layer or an attention returns, the outputs."""

    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0]


class Attending(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention, self.last = (
            nn.MultiheadAttention(8, 2, batch_first=True, **settings),
            nn.Linear(8, 4),
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.last(self.attention(query, key, value, need_weights=False)[0])  # type: ignore[no-any-return]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(9, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.shared(self.first(x)).relu()))  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid, self.out = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9)
        self.out.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.mid(self.emb(tokens)).relu())  # type: ignore[no-any-return]


class Gated(nn.Module):
    """The branch is taken only while the gate, which no optimizer moves, is open."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.open = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.branch(x) if self.open else x)  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    return nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, groups=2),
        ),
        *(
            nn.Dropout(0.5),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 2, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        nn.Linear(6, 4),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose1d(4, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3, groups=2)
    )


def correlated(*shape: int) -> Tensor:
    """Inputs of which each tells something about the next, or no weight could compensate
    for another."""
    independent = torch.randn(shape)
    return independent + 0.7 * independent.roll(1, -1)


def recurrent(kind: Any, **settings: Any) -> nn.Module:
    width = (settings.get("proj_size") or 8) * (2 if settings.get("bidirectional") else 1)
    return nn.Sequential(kind(5, 8, **settings), First(), nn.Linear(width, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "linear": (lambda: nn.Linear(9, 4), lambda: correlated(20, 9)),
    "convolutions": (convolutions, lambda: correlated(8, 3, 7, 7)),
    "transposed": (transposed, lambda: correlated(8, 4, 7)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 8, padding_idx=2), nn.Linear(8, 4)),
        lambda: torch.randint(9, (6, 5)),
    ),
    "lstm": (lambda: recurrent(nn.LSTM), lambda: correlated(6, 5, 5)),
    "deep lstm": (
        lambda: recurrent(nn.LSTM, num_layers=2, proj_size=6),
        lambda: correlated(6, 5, 5),
    ),
    "gru": (lambda: recurrent(nn.GRU), lambda: correlated(6, 5, 5)),
    "cell": (lambda: nn.Sequential(nn.GRUCell(9, 8), nn.Linear(8, 4)), lambda: correlated(20, 9)),
    "attention": (Attending, lambda: dict.fromkeys(("query", "key", "value"), correlated(4, 5, 8))),
    "cross attention": (
        lambda: Attending(kdim=6, vdim=7),
        lambda: (correlated(4, 5, 8), correlated(4, 6, 6), correlated(4, 6, 7)),
    ),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
        lambda: correlated(4, 6, 8),
    ),
    "tied": (Tied, lambda: torch.randint(9, (6, 5))),
    "called twice": (Twice, lambda: correlated(20, 9)),
}


def network(kind: str, seed: int = 0) -> tuple[nn.Module, list[Any]]:
    """A network whose norms have something to do, and three batches of its inputs."""
    torch.manual_seed(seed)
    model, give = NETWORKS[kind]
    made = model()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    return made, [give() for _ in range(3)]


def outputs(model: nn.Module, batches: list[Any]) -> Tensor:
    """Of every batch, in evaluation mode, which is left again."""
    with observing(model):
        return torch.cat([call(model, batch).flatten() for batch in batches])


def disturb(model: nn.Module, seed: int) -> None:
    """In place of retraining, what an optimizer with weight decay might do: every parameter moves,
    frozen weights or not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.99).add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


def weight_of(model: nn.Module, name: str) -> Tensor:
    """A planned layer's weight as the network sees it."""
    owner, _, attribute = name.rpartition(".")
    try:
        value = model.get_submodule(name).weight
    except AttributeError:
        value = getattr(model.get_submodule(owner), attribute)
    assert isinstance(value, Tensor)
    return value.detach().clone()


def ways(model: nn.Module) -> list[Any]:
    """What stages must leave as it is: modes, hooks, flags, gradients, buffers, and torch's own
    switches."""
    modules = [
        module
        for module in model.modules()
        if not isinstance(module, parametrize.ParametrizationList | FrozenWeights)
    ]
    kept = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    buffers = [
        (name, b.tolist()) for name, b in model.named_buffers() if "parametrizations" not in name
    ]
    flags = [(id(p), p.requires_grad, p.grad) for p in model.parameters()]
    switches = [
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.random.get_rng_state().tolist(),
    ]
    return [kept, buffers, flags, switches, threading.active_count()]
