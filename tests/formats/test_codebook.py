"""What codebooks have in common: what divides levels, and powers that are exact."""

import itertools
from fractions import Fraction

import pytest
import torch

from octavo.errors import PlanError
from octavo.formats.codebook import Codebook, edges, power
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot, WidthLike


@pytest.mark.parametrize("width", [2, 3, 5, Apot(5), Apot(8), "fp4", "fp6", "fp8", "int8"])
def test_a_tie_goes_to_the_larger_level_on_either_side_of_zero(width: WidthLike) -> None:
    levels = codebook_at(width, torch.tensor(0)).levels()
    middles = [
        float((Fraction(a) + Fraction(b)) / 2) for a, b in itertools.pairwise(levels.tolist())
    ]
    weight = torch.tensor(middles)
    assert weight.tolist() == middles
    codes = torch.bucketize(weight, edges(levels), right=True)
    expected = [max(pair, key=abs) for pair in itertools.pairwise(levels.tolist())]
    assert levels[codes].tolist() == expected


def test_powers_are_exact_down_to_the_smallest() -> None:
    exponents = torch.tensor([-149, -127, -1, 0, 127])
    assert power(exponents).tolist() == [2.0**e for e in exponents.tolist()]
    assert power(torch.tensor(3)).shape == ()


@pytest.mark.parametrize("width", [2, 8, Apot(5), Apot(8), "fp4", "fp6", "fp8", "int8"])
def test_every_codebook_is_symmetric_and_exact_at_its_lowest_scale(width: WidthLike) -> None:
    unit: Codebook = codebook_at(width, torch.tensor(0))
    levels = unit.levels().tolist()
    assert levels == sorted(set(levels)) == [-level for level in reversed(levels)]
    assert levels[-1] < unit.reach.edge < 2
    lowest = codebook_at(width, torch.tensor(unit.lowest_max_exponent)).levels().tolist()
    if not isinstance(
        unit, PowerOfTwo
    ):  # of which the paper's lowest levels may be below all floats
        assert lowest == [level * 2.0**unit.lowest_max_exponent for level in levels]


SHAPES = [(3, 0), (1, 1), (5, 27), (2, 3, 5, 5), (3, 70001), (300, 257)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("width", [2, 4, 8, Apot(5), "fp6", "int8"])
def test_codes_decode_to_their_levels_wherever_blocks_and_pairs_end(
    width: WidthLike, shape: tuple[int, ...]
) -> None:
    codebook = codebook_at(width, torch.arange(shape[0]) % 5 - 2)
    levels = codebook.levels()  # (channels, levels)
    codes = torch.randint(levels.shape[1], shape, dtype=torch.uint8)
    expected = levels.gather(1, codes.flatten(1).long()).view(shape)
    assert torch.equal(codebook.decode(codes), expected)
    out = torch.full(shape, 7.0)
    assert codebook.decode(codes, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("columns", [64, 70])  # the last group is whole, or filled up
def test_groups_decode_into_given_memory(columns: int) -> None:
    exponents = torch.tensor([[0, 1, -3], [2, 5, 4]])[:, : -(-columns // 32)]
    codebook = codebook_at(4, exponents, 32)
    codes = torch.randint(9, (2, columns), dtype=torch.uint8)
    scale = 2.0 ** exponents.repeat_interleave(32, 1)[:, :columns]
    out = torch.full((2, columns), 7.0)
    codebook.decode(codes, out=out)
    assert torch.equal(out, codebook.unit_levels()[codes.int()] * scale)


def test_a_code_beyond_the_last_level_leaves_the_memory_as_it_was() -> None:
    out = torch.full((2,), 7.0)
    with pytest.raises(PlanError, match="expected at most 4 at 3 bits, got 5"):
        codebook_at(3, torch.tensor(0)).decode(torch.tensor([0, 5], dtype=torch.uint8), out=out)
    assert out.tolist() == [7, 7]
