"""What a forward pass does beside computing outputs is found out by calls."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.network.conduct import PURE, Conduct, conduct_of

K = ("", "k")


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.forward_pass = forward
        self.k: Any = [0]
        self.register_buffer("state", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_pass(self, x)


def stack(s: Any, x: Tensor) -> Tensor:
    s.k.append(x)
    return s.a(x) + s.k.pop()  # type: ignore[no-any-return]


def keep(s: Any, x: Tensor) -> Tensor:
    s.k = x
    return s.a(s.k)  # type: ignore[no-any-return]


def stream(s: Any, x: Tensor) -> Tensor:
    s.state.add_(x.mean(0))
    return s.a(x) + s.state  # type: ignore[no-any-return]


def first_only(s: Any, x: Tensor) -> Tensor:
    s.k = x.mean() if isinstance(s.k, list) else s.k
    return s.a(x) + s.k  # type: ignore[no-any-return]


def last_only(s: Any, x: Tensor) -> Tensor:
    if len(x) < 4:
        s.k = x
    return s.a(x)  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[..., Tensor], Conduct]] = {
    "pure": (lambda s, x: s.a(x), PURE),
    "stack": (stack, Conduct(frozenset({K}))),
    "attribute": (keep, Conduct(frozenset({K}))),
    "stream": (stream, Conduct(frozenset({("", "state")}), carries=True)),
    "of the first batch": (first_only, Conduct(frozenset({K}), carries=True)),
    "of small batches": (last_only, Conduct(frozenset({K}))),
    "inputs": (lambda s, x: s.a(x.sub_(1)), Conduct(writes_inputs=True)),
    "torch": (lambda s, x: s.a(x) + torch.rand(()), Conduct(draws=True)),
    "Python": (lambda s, x: s.a(x) + random.random(), Conduct(repeats=False)),
}


@pytest.mark.parametrize("name", CASES)
def test_conduct(name: str) -> None:
    forward, expected = CASES[name]
    batches = [torch.randn(size, 3) for size in (5, 5, 5, 3)]
    kept = [batch.clone() for batch in batches]
    model = Net(forward).eval()
    with torch.no_grad():
        assert conduct_of(model, batches) == expected
    assert expected.pure is (name in ("pure", "Python"))
    assert model.k == [0]
    assert not model.state.any()  # type: ignore[operator]
    assert all(map(torch.equal, batches, kept))
