"""Ranks agree: rank 0 works for all, values are shared, and a rank that differs is named."""

from typing import Any

import pytest
import torch
from tests.ranks import Ranks as Processes

from octavo.errors import OctavoError, PlanError, TrainingError
from octavo.network.ranks import ALONE, Ranks


def test_a_process_without_a_group_is_alone() -> None:
    ranks = Ranks.of_process()
    assert ranks == ALONE
    assert ranks.leads
    assert ranks.once(lambda: 3) == 3
    tensor = torch.ones(2)
    ranks.share([tensor])
    ranks.check_equal({"a": "b"}, "doing")
    assert ranks.mean(tensor) is tensor
    with pytest.raises(ZeroDivisionError):
        ranks.once(lambda: 1 // 0)


def work_once(number: int) -> list[Any]:
    ranks = Ranks.of_process()
    done: list[int] = []

    def work() -> str:
        done.append(number)
        return f"from {number}"

    def refuse() -> None:
        raise PlanError(f"refused on {number}")

    def break_down() -> None:
        raise ZeroDivisionError(lambda: "no pickle takes this")

    caught: list[str] = []
    result = ranks.once(work)
    for fails in (refuse, break_down):
        try:
            ranks.once(fails)
        except OctavoError as error:
            caught.append(f"{type(error).__name__}: {error}"[:40])
    return [result, done, caught]


def test_rank_0_works_once_for_all_and_its_errors_reach_all(on_two_ranks: Processes) -> None:
    caught = ["PlanError: refused on 0", "OctavoError: rank 0: ZeroDivisionError: "]
    first, second = on_two_ranks(work_once)
    assert first[:2] == ["from 0", [0]]
    assert second[:2] == ["from 0", []]
    assert [one.startswith(wanted) for one, wanted in zip(first[2], caught, strict=True)] == [1, 1]
    assert first[2] == second[2]


def take_from_rank_0(number: int) -> list[torch.Tensor]:
    tensors = [
        torch.full((2, 3, 2, 2), float(number)).to(memory_format=torch.channels_last),
        torch.arange(6.0).view(2, 3).t() * number,
        torch.tensor([number == 0, True]),
        torch.tensor(number, dtype=torch.int64),
        torch.full((3,), number, dtype=torch.bfloat16),
        torch.zeros(0),
    ]
    ranks = Ranks.of_process()
    ranks.share(tensors)
    return [*tensors, ranks.mean(torch.tensor([1.0, number]))]


def test_tensors_of_any_kind_come_from_rank_0(on_two_ranks: Processes) -> None:
    for answer in on_two_ranks(take_from_rank_0):
        assert [float(tensor.double().sum()) for tensor in answer[:-1]] == [0, 0, 2, 0, 0, 0]
        assert answer[0].is_contiguous(memory_format=torch.channels_last)
        assert answer[-1].tolist() == [1.0, 0.5]


def compare(number: int) -> None:
    values = {"seed": "0", "fc1": f"{number}", "fc2": f"{number}"}
    Ranks.of_process().check_equal(values, "stage 2")


def test_a_rank_that_differs_is_named_on_every_rank(on_two_ranks: Processes) -> None:
    for error in on_two_ranks(compare):
        assert isinstance(error, TrainingError)
        assert str(error).startswith("stage 2: rank 1 differs from rank 0 in fc1; give every rank")
