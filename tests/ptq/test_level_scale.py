"""The scale of a layer's levels: one, one per channel, or one per group of a channel's inputs."""

import torch

from octavo.ptq.level_scale import LevelScale

SHAPE = torch.Size([2, 2, 3])  # (problems, rows, columns): four channels
EXPONENTS = torch.tensor([[0, 1], [2, -1], [3, 3], [-4, -2]], dtype=torch.int32)


def test_groups_of_two_of_three_columns() -> None:
    scale = LevelScale.of(EXPONENTS, 2, SHAPE)
    assert scale.row_exponent().flatten().tolist() == [1, 2, 3, -2]
    by_channel = scale.exponent().flatten(0, 1).tolist()
    assert by_channel == [[0, 0, 1], [2, 2, -1], [3, 3, 3], [-4, -4, -2]]
    below = scale.below_row()
    assert below is not None
    assert below.dtype == torch.float32
    whole = torch.ldexp(below.double(), scale.row_exponent())
    assert torch.equal(whole, torch.ldexp(torch.ones(SHAPE).double(), scale.exponent()))


def test_one_and_one_per_channel() -> None:
    one = LevelScale.of(torch.tensor(3), 0, SHAPE)
    each = LevelScale.of(torch.tensor([0, 1, 2, 3]), 0, SHAPE)
    assert one.exponent().flatten().tolist() == [3] * 4
    assert each.exponent().flatten().tolist() == each.row_exponent().flatten().tolist()
    assert each.row_exponent().flatten().tolist() == [0, 1, 2, 3]
    assert one.below_row() is None
    assert each.times(1.5).row_factor().flatten().tolist() == [1.5] * 4


def test_each_channel_takes_the_better_one() -> None:
    first = LevelScale.of(EXPONENTS, 2, SHAPE)
    other = LevelScale.of(EXPONENTS + 1, 2, SHAPE).times(0.5)
    best = first.where(torch.tensor([True, False, False, True]), other)
    assert best.max_exponent.tolist() == [[1, 2], [2, -1], [3, 3], [-3, -1]]
    assert best.factor.tolist() == [0.5, 1, 1, 0.5]
