"""An epoch in random order: every sample once, batches of one size but the last."""

from typing import Any

import torch

from octavo.runs.tasks.shuffled import Shuffled


def test_every_sample_once_in_an_order_of_torchs_generator() -> None:
    epoch = Shuffled(10, 4, lambda picked: (picked, picked * 2))
    torch.manual_seed(3)
    batches: list[Any] = list(epoch)
    assert [len(picked) for picked, _ in batches] == [4, 4, 2]
    assert len(epoch) == 3
    order = torch.cat([picked for picked, _ in batches])
    torch.manual_seed(3)
    assert torch.equal(order, torch.randperm(10))
    assert all(torch.equal(doubled, picked * 2) for picked, doubled in batches)
