"""What codebooks have in common: what divides levels, and powers that are exact."""

import itertools
from fractions import Fraction

import pytest
import torch

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
