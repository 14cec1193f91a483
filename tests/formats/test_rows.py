"""Tensors as rows that have one exponent each, and back."""

import pytest
import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.rows import (
    check_exponent,
    from_rows,
    group_count,
    rows_by_exponent,
    spread,
)

SHAPES = [(3, 7), (3, 2, 2, 2), (3, 1), (3, 64), (4, 5, 13)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 4, 32, 100])
def test_groups_and_back(shape: tuple[int, ...], size: int) -> None:
    weight = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    count = group_count(weight[0].numel(), size)
    exponents = torch.arange(shape[0] * count).view(shape[0], count)
    rows = rows_by_exponent(weight, exponents, size)
    assert len(rows) == exponents.numel()
    assert rows.shape[1] <= size
    each = spread(exponents, weight.shape, size)  # the exponent of each weight
    for number, row in enumerate(rows):
        own = weight[each == number]
        assert own.tolist() == row[row > 0].tolist()
        assert len(own) <= size
    assert torch.equal(from_rows(rows, weight.shape, size), weight)


def test_the_inputs_are_counted_in_the_order_of_memory() -> None:
    """Of a convolution, input channels first: 32 inputs of a 3 x 3 kernel are 3 channels and a
    half."""
    values = torch.tensor([[10, 20, 30]])
    each: Tensor = spread(values, torch.Size([1, 8, 3, 3]), 32)
    assert each.flatten().tolist() == [10] * 32 + [20] * 32 + [30] * 8


@pytest.mark.parametrize("exponent", [torch.tensor(0), torch.tensor([0, 1, 2])])
def test_without_groups(exponent: Tensor) -> None:
    weight = torch.randn(3, 2, 4)
    rows = rows_by_exponent(weight, exponent)
    assert rows.shape == ((3, 8) if exponent.dim() else (1, 24))
    assert torch.equal(from_rows(rows, weight.shape), weight)
    assert spread(exponent, weight.shape).shape == ((3, 1, 1) if exponent.dim() else (1, 1, 1))


def test_another_number_of_inputs_is_refused() -> None:
    with pytest.raises(PlanError, match=r"expected 2 groups of 4 inputs .* got 9 inputs"):
        rows_by_exponent(torch.ones(3, 9), torch.zeros(3, 2, dtype=torch.int32), 4)


def test_floats_become_float32_and_codes_stay_as_they_are() -> None:
    for dtype, expected in ((torch.float64, torch.float32), (torch.uint8, torch.uint8)):
        assert rows_by_exponent(torch.ones(3, 2, dtype=dtype), torch.tensor(0)).dtype == expected


@pytest.mark.parametrize(
    ("exponent", "size"),
    [(torch.tensor(0.0), 0), (torch.tensor([[0]]), 0), (torch.tensor([0]), 2)],
)
def test_exponents_are_integers_of_as_many_dimensions_as_there_are_groups(
    exponent: Tensor, size: int
) -> None:
    with pytest.raises(PlanError, match="expected an integer"):
        check_exponent(exponent, size)
