"""Parts of a batch, on one rank or two, add up to the whole."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.ranks import Ranks as Processes
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.errors import TrainingError
from octavo.network.random_state import RandomState
from octavo.network.ranks import ALONE, Ranks
from octavo.runs.parallel import OwnNumbers, OwnRows, PartLosses, check_same, cut, even_out
from octavo.runs.retraining import Retraining
from octavo.runs.training import Training

ROWS = 10  # of a batch: no whole number of them in four parts
SETTINGS = Retraining(learning_rate=0.05, weight_decay=0.01, clip=1.0, labels=0.5)


class Rows:
    """A task without batch norm; its data are drawn batch by batch."""

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))

    def train_batches(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.randn(ROWS, 6), torch.randint(3, (ROWS,))) for _ in range(4)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        assert not isinstance(model, nn.parallel.DistributedDataParallel)
        return F.cross_entropy(model(batch[0]), batch[1])


def trained(accumulate: int, ranks: Ranks, model: nn.Module, task: Any) -> Training:
    settings = Retraining(**{**vars(SETTINGS), "accumulate": accumulate})
    teacher = Rows().model()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    torch.manual_seed(5)
    training = Training(model, task, 2.0, settings, teacher=teacher, ranks=ranks)
    while training.done < training.steps:
        training.step()
    return training


def on_a_rank(number: int, accumulate: int) -> tuple[list[Tensor], float]:
    model = Rows().model()
    training = trained(accumulate, Ranks.of_process(), model, Rows())
    check_same(model, Ranks.of_process(), "training")
    return [parameter.detach() for parameter in model.parameters()], training.mean_loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_make_the_steps_of_one(on_two_ranks: Processes, accumulate: int) -> None:
    whole = Rows().model()
    alone = trained(1, ALONE, whole, Rows())
    start = next(Rows().model().parameters())
    for parameters, mean_loss in on_two_ranks(on_a_rank, accumulate):
        assert mean_loss == pytest.approx(alone.mean_loss, rel=1e-6)
        for parameter, wanted in zip(parameters, whole.parameters(), strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=1e-5, atol=1e-6)
    assert (next(whole.parameters()) - start).abs().max() > 0.01  # it did move


@pytest.mark.parametrize("accumulate", [2, 4, ROWS])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate: int) -> None:
    whole = Rows().model()
    parts = copy.deepcopy(whole)
    wanted = trained(1, ALONE, whole, Rows()).mean_loss
    assert trained(accumulate, ALONE, parts, Rows()).mean_loss == pytest.approx(wanted, rel=1e-6)
    for parameter, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)


def test_the_graph_of_a_part_is_gone_before_the_next() -> None:
    """Or else nothing would be saved."""
    alive = 0

    def loss_of(batch: Any) -> Tensor:
        nonlocal alive
        assert not alive
        alive = 1
        loss: Tensor = (model(batch[0]) ** 2).mean()
        return loss

    model = nn.Linear(6, 3)
    losses: Iterator[Tensor] = PartLosses(model, loss_of, 5)((torch.randn(ROWS, 6), None))
    for loss in losses:
        loss.backward()
        alive = 0
    assert model.weight.grad is not None


def test_a_batch_is_cut_into_consecutive_rows() -> None:
    x = torch.arange(ROWS)
    parts = cut(({"x": x, "flag": True}, [x, x]), 4)
    assert torch.cat([part[0]["x"] for part, _ in parts]).equal(x)  # type: ignore[call-overload,index]
    assert torch.cat([part[1][1] for part, _ in parts]).equal(x)
    assert [share for _, share in parts] == [0.2, 0.3, 0.2, 0.3]
    whole = (x, x[:2])
    assert cut(whole, 1) == [(whole, 1.0)]


@pytest.mark.parametrize(
    ("batch", "said"),
    [((torch.ones(3), torch.ones(2)), "got others"), ((torch.ones(1),) * 2, "got 1")],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=rf"same number of rows, at least 2, .*; {said}$"):
        cut(batch, 2)


class Epoch(list[Any]):
    """An epoch that gives a part of each batch by itself."""

    def part(self, number: int, count: int) -> list[Any]:
        return [f"{number} of {count}"]


def test_each_rank_has_its_rows_of_each_batch() -> None:
    batches = [(torch.arange(5), torch.arange(5))] * 2
    task: Any = SimpleNamespace(train_batches=lambda: batches)
    assert list(OwnRows(task, ALONE).train_batches()) == [(batches[0], 1.0)] * 2
    for number, rows in enumerate(([0, 1], [2, 3, 4])):
        own: list[Any] = list(OwnRows(task, Ranks(number, 2)).train_batches())
        assert [share for _, share in own] == [len(rows) / 5] * 2
        assert [part.tolist() for batch, _ in own for part in batch] == [rows] * 4
    task = SimpleNamespace(train_batches=lambda: Epoch(batches))
    assert next(iter(OwnRows(task, ALONE).train_batches()))[0] is batches[0]
    given: list[Any] = list(OwnRows(task, Ranks(1, 2)).train_batches())
    assert given == [("1 of 2", 0.5)]


def drawn(number: int) -> tuple[list[float], list[float]]:
    random = RandomState(nn.Linear(1, 1))
    torch.manual_seed(3)
    numbers = OwnNumbers(random, Ranks.of_process())
    data: list[float] = []
    model: list[float] = []
    for _ in range(3):
        with numbers.of_data():
            data.append(float(torch.rand(())))
        model += torch.rand(1 + number).tolist()  # ranks may draw more and less
    return data, model


def test_ranks_draw_the_same_data_and_other_noise(on_two_ranks: Processes) -> None:
    (data, noise), (data_too, other_noise) = on_two_ranks(drawn)
    torch.manual_seed(3)
    assert data == data_too == [float(torch.rand(())) for _ in range(3)]
    assert not set(noise) & set(other_noise)
    numbers = OwnNumbers(RandomState(nn.Linear(1, 1)), ALONE)
    torch.manual_seed(3)
    with numbers.of_data():
        first = torch.rand(1)
    assert [float(first), float(torch.rand(1))] == data[:2]


def buffers(number: int) -> dict[str, Tensor]:
    model: Any = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    model.register_buffer("other", torch.tensor([float(number)]))
    model[0].running_mean += number
    even_out(model, Ranks.of_process())
    return dict(model.named_buffers())


def test_statistics_are_averaged_and_other_buffers_come_from_rank_0(
    on_two_ranks: Processes,
) -> None:
    for answer in on_two_ranks(buffers):
        assert answer["0.running_mean"].tolist() == [0.5, 0.5]
        assert answer["other"].tolist() == [0.0]


def differing(number: int) -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, number)
    check_same(model, Ranks.of_process(), "warm-up, stage 1/1")


def test_a_rank_with_another_network_is_named(on_two_ranks: Processes) -> None:
    for error in on_two_ranks(differing):
        assert str(error).startswith("warm-up, stage 1/1: rank 1 differs from rank 0 in weight;")
