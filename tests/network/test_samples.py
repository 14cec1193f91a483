"""The samples of a batch, whatever containers its tensors stand in."""

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from octavo.network.samples import rows_of, sample_count


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
