"""The portions that a network gets by default."""

import pytest
import torch
from torch import nn

from octavo.inq.partition import PORTIONS, SPARSE_PORTIONS, portions_for
from octavo.network.layers import find_layers


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, PORTIONS), (0.49, PORTIONS), (0.5, SPARSE_PORTIONS), (1.0, SPARSE_PORTIONS)],
)
def test_sparse_networks_get_finer_portions(share: float, expected: tuple[float, ...]) -> None:
    layer = find_layers(nn.Linear(100, 1))[0][0]
    mask = torch.arange(100).view(1, 100) < 100 * share
    assert portions_for([layer], {layer.name: mask}) == expected
