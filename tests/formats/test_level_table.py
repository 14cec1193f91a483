"""A codebook from a table of integers."""

import pytest
import torch

from octavo.errors import PlanError
from octavo.formats.level_table import LevelTable, TableCodebook
from octavo.formats.width import Width

TABLE = LevelTable(Width(4, "fp"), (1, 3, 5), 8)


def test_the_scale_is_the_power_of_two_in_the_largest_level() -> None:
    codebook = TableCodebook(TABLE, torch.tensor([2, 0]))
    assert TABLE.unit == 4
    levels = torch.tensor([-5.0, -3, -1, 0, 1, 3, 5])
    assert torch.equal(codebook.levels(), torch.stack([levels, levels / 4]))
    assert (codebook.zero, codebook.reach.edge, codebook.reach.fitted) == (3, 6.5 / 4, 5 / 4)
    weight = torch.tensor([[4.0, -0.4, 99.0], [0.5, 0.0, -1.0]])  # 4 and 0.5 are ties
    assert codebook.project(weight).tolist() == [[5, 0, 5], [0.75, 0, -1.25]]
    assert codebook.encode(weight).tolist() == [[6, 3, 6], [5, 3, 0]]
    assert torch.equal(codebook.decode(codebook.encode(weight)), codebook.project(weight))


def test_groups_have_levels_of_their_own() -> None:
    codebook = TableCodebook(TABLE, torch.tensor([[2, 0]]), 2)
    weight = torch.tensor([[[5.0], [1.0], [1.0]]])  # a channel of three inputs: two and one
    assert codebook.levels().shape == (1, 2, 7)
    assert codebook.project(weight).tolist() == [[[5.0], [1.0], [1.25]]]
    assert codebook.encode(weight).tolist() == [[[6], [4], [6]]]
    assert torch.equal(codebook.decode(codebook.encode(weight)), codebook.project(weight))


@pytest.mark.parametrize(("exponent", "size"), [(torch.tensor([[0]]), 0), (torch.tensor([0]), 2)])
def test_exponents_of_another_shape(exponent: torch.Tensor, size: int) -> None:
    with pytest.raises(PlanError, match=r"^max_exponent: expected an integer (matrix|scalar)"):
        TableCodebook(TABLE, exponent, size)


def test_the_lowest_exponent_is_that_of_the_smallest_normal_number() -> None:
    assert 2.0**TableCodebook.lowest_max_exponent == torch.finfo(torch.float32).tiny
