"""Some inputs are set aside: enough of them, never many, and only what can be divided is."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from octavo.network.forward import observing
from octavo.ptq.setting_aside import deal, is_divisible, put_aside


def numbers(batches: Iterable[Any]) -> list[int]:
    return [int(row) for batch in batches if batch is not None for row in batch.flatten()]


def dealt(*sizes: int, by_sample: bool = True) -> tuple[list[int], list[int]]:
    """The numbers of the samples that calibrate, and of those that were set aside."""
    batches = torch.arange(sum(sizes)).unsqueeze(1).split(list(sizes))
    pairs = list(deal(batches, by_sample=by_sample))
    return numbers(pair[0] for pair in pairs), numbers(pair[1] for pair in pairs)


@pytest.mark.parametrize("sizes", [[64], [1] * 70, [40, 40, 3], [200, 400], [7] * 10])
def test_every_eighth_sample_is_set_aside_and_the_others_calibrate(sizes: list[int]) -> None:
    count = sum(sizes)
    calibrating, aside = dealt(*sizes)
    assert aside == list(range(count))[7:512:8]
    assert sorted(calibrating + aside) == list(range(count))


def test_of_many_samples_64_are_set_aside() -> None:
    calibrating, aside = dealt(*[128] * 20)
    assert len(aside) == 64
    assert len(calibrating) == 128 * 20 - 64


@pytest.mark.parametrize("sizes", [[63], [1] * 63, [30, 33], []])
def test_of_fewer_than_64_samples_none_is_set_aside(sizes: list[int]) -> None:
    assert dealt(*sizes) == (list(range(sum(sizes))), [])


def test_whole_batches_keep_their_identity() -> None:
    batches = [torch.zeros(30, 1), torch.zeros(33, 1)]
    pairs = list(deal(batches, by_sample=True))
    assert [pairs[0][0] is batches[0], pairs[1][0] is batches[1]] == [True, True]


def test_what_cannot_be_divided_is_set_aside_by_batch() -> None:
    assert dealt(*[1] * 20, by_sample=False)[1] == [7, 15]
    assert dealt(*[1] * 7, by_sample=False)[1] == []
    assert dealt(*[1] * 200, by_sample=False)[1] == list(range(7, 64, 8))


@pytest.mark.parametrize(("most", "sizes"), [(0, [2, 3, 2, 2]), (4, [4, 3, 2]), (9, [6, 3])])
def test_samples_of_one_length_are_set_aside_together(most: int, sizes: list[int]) -> None:
    aside: list[Any] = []
    for count, length in ((2, 5), (3, 7), (2, 5), (2, 5)):
        put_aside(torch.full((count, length), float(length)), aside, most)
    assert [len(batch) for batch in aside] == sizes
    assert all(bool((batch == batch.shape[1]).all()) for batch in aside)


def test_what_has_no_samples_is_set_aside_by_itself() -> None:
    aside: list[Any] = []
    for number in range(2):
        put_aside(pack_sequence([torch.full((2, 1), float(number))]), aside, 0)
    assert len(aside) == 2


class OverTime(nn.Module):
    """Its inputs have time along dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]  # type: ignore[no-any-return]


class OfFour(nn.Module):
    """It takes batches of one size only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 3) * torch.ones(4, 1)


class WithLoss(nn.Module):
    """It returns a mean over its rows, and perhaps these rows too."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, x: Tensor) -> Any:
        return x.mean() if self.alone else {"loss": x.mean(), "logits": 2 * x}


class Dropping(nn.Module):
    """It drops values in evaluation too, so its rows are never the same."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x)


class Counting(nn.Module):
    """It keeps state, and writes into its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.mul_(2)


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        (nn.Linear(3, 2), torch.randn(9, 3), True),
        (nn.Linear(3, 2), torch.randn(1, 3), True),
        (nn.LSTM(3, 3, batch_first=True), torch.randn(5, 8, 3), False),  # its states: dimension 1
        (nn.Sequential(nn.Linear(3, 2), Dropping()), torch.randn(9, 3), True),
        (OverTime(), torch.randn(8, 5, 3), False),
        (OfFour(), torch.randn(8, 3), False),
        (WithLoss(alone=False), torch.randn(8, 3), True),
        (WithLoss(alone=True), torch.randn(8, 3), False),
        (nn.Linear(3, 2), (torch.randn(9, 3), 1), False),
        (nn.LSTM(3, 3), pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]), False),
        (nn.Linear(3, 2), torch.randn(0, 3), False),
    ],
)
def test_only_rows_that_a_model_treats_apart_are_divided(
    model: nn.Module, batch: Any, expected: bool
) -> None:
    with observing(model):
        assert is_divisible(model, batch) is expected


def test_nothing_stays_of_the_calls_that_find_out() -> None:
    model = Counting()
    state = copy.deepcopy(model.state_dict())
    batch = torch.ones(8, 3)
    with observing(model):
        assert is_divisible(model, batch)
    assert torch.equal(batch, torch.ones(8, 3))
    assert model.state_dict() == state
