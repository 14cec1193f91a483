"""Sums of two powers of two: the levels, the rounding and the choice of n1, against enumeration
over exact fractions."""

import bisect
import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import Codebook
from octavo.formats.level_table import LOWEST
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import Apot

BITS = range(5, 9)
HUGE = float(np.finfo(np.float32).max)


def additive_powers(weight: Tensor, bits: int, fit: Any = "max", **chosen: Any) -> Codebook:
    return fitted_codebook(weight, Apot(bits), fit=fit, **{"per": "tensor", **chosen})


@functools.cache
def sums(finest: int) -> list[Fraction]:
    """Positive sums of at most two signed powers, up to 4, with few enough bits behind the leading
    one; all pairs are tried."""
    powers = [Fraction(2) ** e for e in range(-18, 3)]
    found = {
        a + sign * b
        for a, b in itertools.product([*powers, Fraction(0)], powers)
        for sign in (1, -1)
    }
    return sorted(
        number
        for number in found
        if 0 < number <= 4 and bits_behind_the_leading_one(number) <= finest
    )


def bits_behind_the_leading_one(number: Fraction) -> int:
    while number >= 2:
        number /= 2
    while number < 1:
        number *= 2
    return number.denominator.bit_length() - 1


@functools.cache
def magnitudes(bits: int, top: int = 0) -> list[Fraction]:
    """Non-negative levels, as many as there are codes for, in the octaves below 2^(n1 + 1); evenly
    spaced near zero."""
    count, finest = 2 ** (bits - 1) - 1, bits - 3
    for lowest in range(
        2, 18
    ):  # the spacing of the smallest levels, 2^-lowest: the finest at which the count suffices
        grid = [n for n in sums(finest) if (n * 2**lowest).denominator == 1][:count]
        if grid[-1] < 2 and len(grid) == count and all_there(grid, lowest):
            return [Fraction(0), *(number * Fraction(2) ** top for number in grid)]
    raise AssertionError(bits)


def all_there(grid: list[Fraction], lowest: int) -> bool:
    """Whether the largest level's leading power is 1 and the smallest level the spacing."""
    return grid[-1] >= 1 and grid[0] == Fraction(1, 2**lowest)


def nearest(weight: float, levels: list[Fraction]) -> Fraction:
    """The level at the least distance, the larger of two."""
    size = abs(Fraction(weight))
    above = bisect.bisect_left(levels, size)
    chosen = min(
        levels[max(above - 1, 0) : above + 1], key=lambda level: (abs(level - size), -level)
    )
    return -chosen if weight < 0 else chosen


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squared_error(weights: list[float], importance: list[float], bits: int, top: int) -> Fraction:
    levels = magnitudes(bits, top)
    shares = zip(weights, importance, strict=True)
    return sum(
        (Fraction(i) * (Fraction(w) - nearest(w, levels)) ** 2 for w, i in shares), Fraction(0)
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("top", [LOWEST, -7, 0, 3, 127])
def test_the_levels_are_all_sums_of_two_powers_of_two(bits: int, top: int) -> None:
    levels = codebook_at(Apot(bits), torch.tensor(top)).levels()
    positive = magnitudes(bits, top)
    assert [Fraction(value) for value in levels.tolist()] == [
        -value for value in positive[:0:-1]
    ] + positive
    assert len(levels) == 2**bits - 1 <= 255
    assert all(number / Fraction(2) ** top in sums(bits - 3) for number in positive[1:])


def test_five_bits_written_out() -> None:
    unit = codebook_at(Apot(5), torch.tensor(4)).levels()[15:]
    assert unit.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("top", [LOWEST, -60, 0, 9, 127])
def test_every_weight_takes_its_nearest_level(bits: int, top: int) -> None:
    positive = magnitudes(bits, top)
    middles = [float((a + b) / 2) for a, b in itertools.pairwise(positive)]
    around = [np.float32(m) for m in middles if float(np.float32(m)) == m]
    values = [*map(float, positive), *map(float, around), 0.0, -0.0, HUGE, 2.0**-149]
    values += [float(np.nextafter(m, np.float32(end))) for m in around for end in (0, HUGE)]
    values += [math.ldexp(w, top) for w in (gaussian(30, seed=bits) / 2).tolist() if abs(w) < 1.9]
    weight = torch.tensor([value for value in values if abs(value) <= HUGE], dtype=torch.float32)
    weight = torch.cat([weight, -weight])
    codebook = codebook_at(Apot(bits), torch.tensor(top))
    level, codes = codebook.project(weight), codebook.encode(weight)
    assert [Fraction(value) for value in level.tolist()] == [
        nearest(value, positive) for value in weight.tolist()
    ]
    ascending = [-value for value in positive[:0:-1]] + positive
    assert codes.dtype == torch.uint8
    assert [ascending[code] for code in codes.tolist()] == [
        Fraction(value) for value in level.tolist()
    ]
    assert torch.equal(codebook.decode(codes).view(torch.int32), level.view(torch.int32))
    assert not torch.signbit(level[level == 0]).any()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
    st.sampled_from(BITS),
    st.sampled_from(["max", "mse"]),
)
@settings(deadline=None, max_examples=40)
def test_whatever_the_weights_rounding_is_to_the_nearest_level(
    values: list[float], bits: int, fit: Any
) -> None:
    weight = torch.tensor(values)
    codebook = additive_powers(weight, bits, fit=fit)
    level = codebook.project(weight)
    levels = magnitudes(bits, int(codebook.max_exponent))
    assert [Fraction(value) for value in level.tolist()] == [
        nearest(value, levels) for value in values
    ]
    assert torch.equal(level, codebook.decode(codebook.encode(weight)))
    assert torch.equal(codebook.encode(level), codebook.encode(weight))
    assert torch.equal(codebook.project(level), level)


@given(st.sampled_from(BITS), st.integers(LOWEST, 127), st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_codes_come_back(bits: int, top: int, seed: int) -> None:
    codes = torch.randint(
        0, 2**bits - 1, (40,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    codebook = codebook_at(Apot(bits), torch.tensor(top))
    assert torch.equal(codebook.encode(codebook.decode(codes)), codes)


@pytest.mark.parametrize("bits", BITS)
def test_the_edge_is_where_the_next_level_would_begin(bits: int) -> None:
    levels = magnitudes(bits)
    following = min(number for number in sums(bits - 3) if number > levels[-1])
    edge = codebook_at(Apot(bits), torch.tensor(0)).reach.edge
    assert Fraction(edge) == (levels[-1] + following) / 2


@pytest.mark.parametrize("bits", BITS)
def test_the_largest_weight_is_within_the_levels_and_at_half_the_scale_it_is_not(bits: int) -> None:
    for largest in (1.0, 1.0625, 1.0626, 1.5, 1.75, 1.7501, 1.875, 1.9, 1.999, 3e-20, 7e30):
        top = int(additive_powers(torch.tensor([largest, -largest / 3]), bits).max_exponent)
        assert (
            magnitudes(bits, top - 1)[-1]
            < Fraction(float(np.float32(largest)))
            <= magnitudes(bits, top)[-1]
        )


WEIGHTS: dict[str, Any] = {
    "gaussian": lambda rng: rng.standard_normal(25),
    "laplace": lambda rng: rng.laplace(size=25),
    "heavy tail": lambda rng: rng.standard_cauchy(25),
    "one far out": lambda rng: np.append(rng.standard_normal(20) / 1000, 30.0),
    "sparse": lambda rng: np.where(np.arange(25) % 5 == 0, rng.standard_normal(25), 0),
}


@pytest.mark.parametrize("bits", [5, 6, 8])
@pytest.mark.parametrize("case", WEIGHTS)
def test_least_error_against_every_n1(case: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    weights = WEIGHTS[case](rng).astype(np.float32).tolist()
    random = (rng.random(len(weights)) ** 4).astype(np.float32).tolist()
    highest = math.ceil(math.log2(max(map(abs, weights)))) + 1
    for importance in (None, random):
        counted = None if importance is None else torch.tensor(importance)
        found = int(
            additive_powers(torch.tensor(weights), bits, fit="mse", importance=counted).max_exponent
        )
        flat = importance or [1.0] * len(weights)
        errors = {
            top: squared_error(weights, flat, bits, top) for top in range(highest - 12, highest + 1)
        }
        assert float(errors[found]) <= float(min(errors.values())) * (1 + 1e-12)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", ["gaussian", "laplace"])
def test_it_loses_a_fifth_of_what_the_best_powers_of_two_lose_or_less(case: str, bits: int) -> None:
    weight = torch.from_numpy(
        getattr(np.random.default_rng(1), "laplace" if case == "laplace" else "normal")(
            size=(20, 2000)
        )
    )
    lost = [
        float(
            (weight - make(weight, width, fit="mse", per="channel").project(weight)).square().sum()
        )
        for make, width in ((additive_powers, bits), (power_of_two, 5))
    ]
    assert lost[0] < lost[1] / 5


def test_each_channel_has_levels_of_its_own() -> None:
    weight = gaussian(5, 3, 2, 2) * torch.logspace(-3, 2, 5).view(-1, 1, 1, 1)
    together = additive_powers(weight, 6, fit="mse", per="channel")
    alone = [additive_powers(row, 6, fit="mse") for row in weight]
    assert together.max_exponent.tolist() == [int(one.max_exponent) for one in alone]
    assert torch.equal(
        together.project(weight),
        torch.stack([one.project(row) for one, row in zip(alone, weight, strict=True)]),
    )
    assert together.levels().shape == (5, 63)


@pytest.mark.parametrize("fit", ["max", "mse"])
def test_zeros_and_empty_tensors_are_legal(fit: Any) -> None:
    zeros = additive_powers(torch.zeros(3, 4), 6, fit=fit, per="channel")
    assert zeros.max_exponent.tolist() == [0, 0, 0]
    assert zeros.encode(torch.zeros(3, 4)).unique().tolist() == [31]
    for shape in ((0,), (0, 3)):
        assert (
            additive_powers(torch.empty(shape), 6, fit=fit).project(torch.empty(shape)).shape
            == shape
        )


def test_other_layouts_types_and_default_types_give_the_same() -> None:
    weight = gaussian(6, 4, 3, 5)
    codebook = additive_powers(weight, 7, per="channel")
    level = codebook.project(weight)
    turned = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for other in (
        turned,
        weight.contiguous(memory_format=torch.channels_last),
        weight.double(),
        torch.nn.Parameter(weight),
    ):
        assert torch.equal(codebook.project(other), level)
        assert not codebook.project(other).requires_grad
    torch.set_default_dtype(torch.float64)
    try:
        assert codebook.levels().dtype == codebook.project(weight).dtype == torch.float32
        assert torch.equal(codebook.project(weight), level)
    finally:
        torch.set_default_dtype(torch.float32)


def test_its_width_is_one_of_sums() -> None:
    for codebook in (codebook_at(Apot(6), torch.tensor(0)), additive_powers(torch.ones(2), 6)):
        assert codebook.width == Apot(6)


def test_powers_of_two_do_not_take_its_widths() -> None:
    for make in (
        lambda: power_of_two(torch.ones(2), Apot(6)),
        lambda: PowerOfTwo(Apot(6), torch.tensor(0)),
    ):
        expected = r"expected an integer from 2 to 8, got Width\(6, 'apot'\)"
        with pytest.raises(PlanError, match=expected):
            make()


def test_what_is_not_finite_or_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^conv: expected finite weights, got 1 of 2"):
        additive_powers(torch.tensor([math.nan, 1.0]), 6, name="conv")
    with pytest.raises(PlanError, match=r"^codes: expected at most 62 at apot6 bits, got 63"):
        codebook_at(Apot(6), torch.tensor(0)).decode(torch.tensor([63], dtype=torch.uint8))
    with pytest.raises(PlanError, match="expected a tensor of 2 output channels, got shape"):
        codebook_at(Apot(6), torch.tensor([0, 1])).encode(torch.ones(3))
    with pytest.raises(PlanError, match=r"^max_exponent: expected an integer scalar or vector"):
        codebook_at(Apot(6), torch.tensor(0.5))


def test_the_old_word_for_per_tensor_warns_and_works() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(DeprecationWarning, match='per="layer" is deprecated .* per="tensor"'):
        old = additive_powers(weight, 5, per="layer")
    assert torch.equal(old.max_exponent, additive_powers(weight, 5, per="tensor").max_exponent)
