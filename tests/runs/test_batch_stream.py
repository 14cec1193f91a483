"""The stream of batches goes on where it was, whatever is drawn in between."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from octavo.errors import TrainingError
from octavo.network.random_state import RandomState
from octavo.runs.batch_stream import BatchStream

EPOCH = 5


class Eager:
    """Draws an epoch when it is asked for it."""

    def train_batches(self) -> Any:
        return [(torch.randn(2), torch.randint(9, (1,))) for _ in range(EPOCH)]


class Lazy:
    """Draws each batch when it is asked for it."""

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(EPOCH)
        for number in order:
            yield torch.randn(2) + number, torch.randint(9, (1,))


class Buffered:
    """Draws each batch from a buffer, so that it depends on all that was drawn before."""

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        buffer = list(torch.arange(float(EPOCH)))
        while buffer:
            value = buffer.pop(int(torch.randint(len(buffer), ())))
            yield value, torch.randint(9, (1,))


class Loaded:
    """Has torch's own loader."""

    def train_batches(self) -> Any:
        data = TensorDataset(torch.arange(10.0).reshape(5, 2), torch.arange(5))
        return DataLoader(data, batch_size=1, shuffle=True)


def stream(task: Any) -> tuple[BatchStream, RandomState]:
    random = RandomState(nn.Linear(1, 1))
    return BatchStream(task, random), random


def taken(batches: BatchStream, count: int, noise: int) -> list[Any]:
    """Take batches, and draw numbers after each, as the dropout of a model does."""
    seen: list[Any] = []
    for _ in range(count):
        seen.append(next(batches))
        torch.rand(noise)
    return seen


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("at", [1, 4, 5, 6, 10, 13])
@pytest.mark.parametrize("task", [Eager, Lazy, Buffered, Loaded])
def test_a_stream_goes_on_where_it_was(task: type, at: int, noise: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        batches, random = stream(task())
        taken(batches, at, noise)
        state, state_of_random = batches.state_dict(), random.read()
        expected = taken(batches, 8, noise)
        torch.manual_seed(99)  # another process
        again, random = stream(task())
        again.load_state_dict(state)
        random.put(state_of_random)
        for batch, wanted in zip(taken(again, 8, noise), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))


def test_states_ahead_of_batches_are_kept_only_where_something_else_was_drawn() -> None:
    batches, _ = stream(Lazy())
    taken(batches, 3, 0)
    assert batches.state_dict()["before"] == {}
    taken(batches, 1, 2)
    taken(batches, 1, 0)
    assert list(batches.state_dict()["before"]) == [4]


def test_an_epoch_that_has_become_shorter_is_refused() -> None:
    batches, _ = stream(Eager())
    taken(batches, 4, 0)
    state = batches.state_dict()

    class Shorter(Eager):
        def train_batches(self) -> Any:
            return super().train_batches()[:2]

    with pytest.raises(
        TrainingError, match=r"gave 2 batches, where the run had read 4 of the same"
    ):
        stream(Shorter())[0].load_state_dict(state)


def test_an_epoch_without_batches_is_refused() -> None:
    class Empty:
        def train_batches(self) -> Any:
            return []

    with pytest.raises(TrainingError, match="gave nothing when asked again"):
        next(stream(Empty())[0])
