"""The samples of a batch, whatever containers its tensors stand in."""

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from octavo.network.samples import alike, in_fewer, joined, rows_of, sample_count


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), {"mask": torch.zeros(5)}), 5),
        ({"x": torch.zeros(5, 2), "cache": None, "flag": True}, 5),
        ((torch.zeros(5, 2), torch.zeros(4)), None),
        ((torch.zeros(5, 2), 3), None),
        ((torch.zeros(5, 2), torch.tensor(1.0)), None),
        (pack_sequence([torch.zeros(2, 1)]), None),
    ],
)
def test_samples_are_counted_where_all_tensors_agree(batch: Any, count: int | None) -> None:
    assert sample_count(batch) == count


def test_rows_are_taken_from_every_tensor_and_options_stay() -> None:
    batch = {"x": torch.arange(10).view(5, 2), "more": [torch.arange(5)], "flag": True}
    rows: Any = rows_of(batch, [1, 3])
    assert rows["x"].tolist() == [[2, 3], [6, 7]]
    assert rows["more"][0].tolist() == [1, 3]
    assert rows["flag"] is True


def test_batches_that_are_alike_become_one() -> None:
    batch = {"x": torch.arange(10).view(5, 2), "more": [torch.arange(5)], "flag": True}
    first, second = rows_of(batch, slice(3)), rows_of(batch, slice(3, 5))
    assert alike(first, second)
    together: Any = joined(first, second)
    assert torch.equal(together["x"], batch["x"])  # type: ignore[arg-type]
    assert together["more"][0].tolist() == [0, 1, 2, 3, 4]
    assert together["flag"] is True


def test_neighbours_that_are_alike_are_joined_until_so_many_are_left() -> None:
    short, long = torch.arange(10).view(10, 1), torch.zeros(2, 3)
    batches: Any = [*short.split(1), *long.split(1)]
    fewer: Any = in_fewer(batches, 4)
    assert [one.shape for one in fewer] == [(3, 1), (3, 1), (3, 1), (1, 1), (2, 3)]
    assert torch.equal(torch.cat(fewer[:4]), short)
    same = in_fewer(batches, 12)
    assert all(one is other for one, other in zip(same, batches, strict=True))
    packed: Any = [pack_sequence([torch.zeros(2, 1)])] * 3  # has no samples
    assert in_fewer(packed, 1) == packed


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(2, 4), "y": torch.zeros(2, 3), "flag": True},
        {"x": torch.zeros(2, 3), "y": torch.zeros(2, 3, dtype=torch.int64), "flag": True},
        {"x": torch.zeros(2, 3), "y": torch.zeros(2, 3), "flag": False},
        {"x": torch.zeros(2, 3), "z": torch.zeros(2, 3), "flag": True},
        {"y": torch.zeros(2, 3), "x": torch.zeros(2, 3), "flag": True},
        (torch.zeros(2, 3), torch.zeros(2, 3), True),
    ],
)
def test_other_shapes_types_options_and_names_are_not_alike(other: Any) -> None:
    batch = {"x": torch.zeros(5, 3), "y": torch.zeros(5, 3), "flag": True}
    assert not alike(batch, other)
