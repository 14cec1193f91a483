"""OBQ against its update in plain Python, one row after another."""

from typing import Any

import pytest
import torch
from torch import Tensor

import octavo.ptq.obq
from octavo.ptq.obq import obq
from octavo.ptq.rounding import Rounding

LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)


def problems(count: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (problems, rows, columns) and correlated inputs (problems, columns, n), float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.6 * torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(count, columns, columns, generator=generator, dtype=torch.float64)
    return weight, mixing @ torch.randn(
        count, columns, 2 * columns + 3, generator=generator, dtype=torch.float64
    )


def row_as_in_the_paper(weight: Tensor, hessian: Tensor, order: str) -> Tensor:
    """The levels of one row: after each freeze the inverse of what is left is computed anew."""
    weight = weight.clone()
    free = list(range(len(weight)))
    while free:
        inverse = torch.linalg.inv(hessian[free][:, free])
        levels = LEVELS[(weight[free].unsqueeze(-1) - LEVELS).abs().argmin(-1)]
        error = weight[free] - levels
        cost = error**2 / inverse.diagonal() if order == "distance" else -weight[free].abs()
        j = int(cost.argmin())
        weight[free] -= error[j] / inverse[j, j] * inverse[j]
        weight[free[j]] = levels[j]
        free.remove(free[j])
    return weight


@pytest.mark.parametrize("rows_at_once", [0, 1, 3, 100])
@pytest.mark.parametrize("order", ["distance", "magnitude"])
def test_each_row_freezes_as_in_the_paper(
    order: Any, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 11 columns a quarter is 3, then 2, 2, 1, 1 and 1: so the inverses shrink several times."""
    weight, X = problems(2, 4, 11)
    hessian = X @ X.mT
    monkeypatch.setattr(octavo.ptq.obq, "CHUNK", rows_at_once * 11**2)
    found = LEVELS[obq(weight, hessian, Rounding(LEVELS), order).codes.long()]
    for levels, w, h in zip(found, weight, hessian, strict=True):
        expected = torch.stack([row_as_in_the_paper(row, h, order) for row in w])
        assert torch.equal(levels, expected)


def test_the_orders_differ() -> None:
    weight, X = problems(2, 4, 11)
    by_distance = obq(weight, X @ X.mT, Rounding(LEVELS), "distance").codes
    assert not torch.equal(by_distance, obq(weight, X @ X.mT, Rounding(LEVELS), "magnitude").codes)
