"""The levels, the rounding and the choice of n1, against eq. 4 in plain Python over exact
fractions."""

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
from octavo.formats.powers_of_two import BLOCK, PowerOfTwo, power_of_two
from octavo.formats.width import Apot, Width, check_bits

BITS = range(2, 9)
TINY, HUGE = 2.0**-149, float(np.finfo(np.float32).max)


def power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def magnitudes(bits: int, top: int) -> list[Fraction]:
    """The sorted non-negative levels: 0, 2^n2, ..., 2^n1 with n2 = n1 + 1 - 2^(b-1) / 2."""
    n2 = top + 1 - 2 ** (bits - 1) // 2
    return [Fraction(0), *(power(e) for e in range(n2, top + 1))]


def rounded(weight: float, levels: list[Fraction]) -> Fraction:
    """Eq. 4 to the letter, for the non-negative ``levels``; but from 1.5 * 2^n1 on it saturates."""
    size, chosen = abs(Fraction(weight)), Fraction(0)
    for alpha, beta in itertools.pairwise(levels):
        if (alpha + beta) / 2 <= size < 3 * beta / 2:
            chosen = beta
    if size >= 3 * levels[-1] / 2:
        chosen = levels[-1]
    return -chosen if weight < 0 else chosen


def paper_exponent(largest: float) -> int:
    """floor(log2(4 s / 3)): the n with 2^n <= 4 s / 3 < 2^(n+1). Float32 has no power above
    2^127."""
    target = Fraction(4) * Fraction(largest) / 3
    n = math.floor(math.log2(largest)) - 2
    while power(n + 1) <= target:
        n += 1
    return min(n, 127)


def squared_error(weights: list[float], importance: list[float], bits: int, top: int) -> Fraction:
    levels = magnitudes(bits, top)
    return sum(
        (
            Fraction(i) * (Fraction(w) - rounded(w, levels)) ** 2
            for w, i in zip(weights, importance, strict=True)
        ),
        Fraction(0),
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and zeros of the same sign."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype == torch.float32
        and torch.equal(a.view(torch.int32), b.view(torch.int32))
    )


def around(value: float) -> list[float]:
    """A float32 and its two neighbours."""
    single = np.float32(value)
    down, up = np.nextafter(single, np.float32(0)), np.nextafter(single, np.float32(HUGE))
    return [float(down), float(single), float(up)]


def awkward(bits: int, top: int) -> list[float]:
    """Ties between every two levels of interest, powers, their neighbours, and what no one expects;
    both signs."""
    n2 = top + 1 - 2 ** (bits - 2)
    exponents = {n2 - 2, n2 - 1, n2, n2 + 1, (n2 + top) // 2, top - 1, top, top + 1, top + 5}
    values = [
        0.0,
        TINY,
        3 * TINY,
        2.0**-126,
        *np.array([1e-45, 1e-38, 0.3, 1e38, HUGE], np.float32).tolist(),
    ]
    for e in exponents:
        for factor in (
            0.75,
            1.0,
            1.5,
        ):  # (alpha + beta) / 2 is 0.75 beta, and half of beta for the smallest beta
            value = math.ldexp(factor, e)
            if TINY <= value <= HUGE and float(np.float32(value)) == value:
                values += around(value)
    return [sign * value for value in values for sign in (1, -1)]


def nearest(weight: np.ndarray, bits: int, top: int) -> np.ndarray:
    """The same rounding for large arrays, in float64, which holds every edge exactly."""
    levels = [float(level) for level in magnitudes(bits, top)]
    edges = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    index = np.searchsorted(edges, np.abs(weight.astype(np.float64)), side="right")
    return np.asarray(np.array(levels)[index] * np.where(weight < 0, -1, 1) + 0.0, dtype=np.float32)


def gaussian(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("top", [-149, -130, -100, -68, -61, -60, -59, -2, 0, 9, 126, 127])
def test_every_weight_takes_the_level_of_equation_4(bits: int, top: int) -> None:
    values = awkward(bits, top) + (gaussian(20, seed=bits) / 4 * math.ldexp(1.0, top)).tolist()
    weight = torch.tensor(values)
    assert weight.tolist() == values  # the fractions below are those of the very float32 weights
    levels = magnitudes(bits, top)
    expected = [rounded(value, levels) for value in values]
    codebook = PowerOfTwo(bits, torch.tensor(top))
    level, codes = codebook.project(weight), codebook.encode(weight)
    assert [Fraction(value) for value in level.tolist()] == expected
    ascending = [-value for value in levels[:0:-1]] + levels
    assert codes.dtype == torch.uint8
    assert [ascending[code] for code in codes.tolist()] == expected
    assert same_bits(level, codebook.decode(codes))
    assert not torch.signbit(level[level == 0]).any()


@pytest.mark.parametrize("bits", BITS)
def test_the_levels_are_those_of_the_paper(bits: int) -> None:
    for top in (-3, 0, 5, 127):
        levels = PowerOfTwo(bits, torch.tensor(top)).levels()
        positive = magnitudes(bits, top)
        assert [Fraction(value) for value in levels.tolist()] == [
            -value for value in positive[:0:-1]
        ] + positive
        assert len(levels) == 2 ** (bits - 1) + 1
        assert levels.tolist() == sorted(set(levels.tolist()))


def test_the_levels_of_channels_are_a_row_each() -> None:
    codebook = PowerOfTwo(3, torch.tensor([0, 3]))
    assert codebook.levels().tolist() == [[-1, -0.5, 0, 0.5, 1], [-8, -4, 0, 4, 8]]
    assert codebook.scale().tolist() == [1, 8]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("fit", ["max", "mse"])
def test_a_code_is_the_index_of_its_level(bits: int, per: Any, fit: Any) -> None:
    weight = gaussian(4, 30, seed=bits)
    codebook = power_of_two(weight, bits, fit=fit, per=per)
    level, codes, levels = codebook.project(weight), codebook.encode(weight), codebook.levels()
    for channel in range(4):
        row = levels[channel] if per == "channel" else levels
        assert same_bits(row[codes[channel].long()], level[channel])


def test_each_channel_has_levels_of_its_own() -> None:
    tops = [-149, -70, -61, -60, -5, 0, 40, 127]
    base = gaussian(8, 40)
    weight = torch.stack(
        [torch.ldexp(row, torch.tensor(top)) for row, top in zip(base, tops, strict=True)]
    )
    codebook = PowerOfTwo(4, torch.tensor(tops))
    level = codebook.project(weight)
    expected = [
        [rounded(value, magnitudes(4, top)) for value in row]
        for row, top in zip(weight.tolist(), tops, strict=True)
    ]
    assert [[Fraction(value) for value in row] for row in level.tolist()] == expected
    assert same_bits(level, codebook.decode(codebook.encode(weight)))


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
    st.sampled_from(BITS),
)
@settings(deadline=None, max_examples=60)
def test_whatever_the_weights_all_is_as_on_paper(values: list[float], bits: int) -> None:
    weight = torch.tensor(values)
    codebook = power_of_two(weight, bits)
    largest = max(map(abs, values))
    top = paper_exponent(largest) if largest else 0
    assert int(codebook.max_exponent) == top
    level = codebook.project(weight)
    assert [Fraction(value) for value in level.tolist()] == [
        rounded(value, magnitudes(bits, top)) for value in values
    ]
    assert same_bits(level, codebook.decode(codebook.encode(weight)))


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_grew_after_n1_was_fixed_saturate(bits: int) -> None:
    weight = gaussian(50)
    codebook = power_of_two(weight, bits)
    largest = float(codebook.levels()[-1])
    grown = torch.tensor(
        [1.4999 * largest, 1.5 * largest, 3 * largest, 1e30, -1.5 * largest, -HUGE]
    )
    assert codebook.project(grown).tolist() == [largest] * 4 + [-largest] * 2
    assert codebook.encode(grown).tolist() == [2 ** (bits - 1)] * 4 + [0] * 2


# Large tensors are rounded block by block; their oracle works in float64 and agrees with the
# fractions.


def test_the_two_oracles_agree() -> None:
    for bits, top in itertools.product((2, 5, 8), (-60, 0, 20)):
        values = awkward(bits, top)
        expected = [float(rounded(value, magnitudes(bits, top))) for value in values]
        assert nearest(np.array(values, np.float32), bits, top).tolist() == expected


@pytest.mark.parametrize(
    "shape",
    [
        (BLOCK + 5,),
        (1, BLOCK),
        (3, BLOCK + 1),
        (2, 2 * BLOCK + 7),
        (200, 1000),
        (BLOCK + 9, 1),
        (70, 3, 30, 30),
        (5, BLOCK - 1),
    ],
)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_tensors_of_many_blocks(shape: tuple[int, ...], per: Any) -> None:
    weight = gaussian(*shape, seed=len(shape))
    tops = torch.arange(shape[0]) % 7 - 4 if per == "channel" else torch.tensor(0)
    codebook = PowerOfTwo(4, tops)
    level = codebook.project(weight)
    rows = weight.numpy().reshape(shape[0] if per == "channel" else 1, -1)
    expected = np.empty_like(rows)
    for top in set(tops.reshape(-1).tolist()):
        chosen = (tops == top).reshape(-1).numpy()
        expected[chosen] = nearest(rows[chosen], 4, top)
    assert same_bits(level, torch.from_numpy(expected).view(weight.shape))
    assert same_bits(level, codebook.decode(codebook.encode(weight)))


def test_other_layouts_and_types_give_the_same_levels() -> None:
    weight = gaussian(6, 4, 3, 5)
    codebook = power_of_two(weight, 3, per="channel")
    level, codes = codebook.project(weight), codebook.encode(weight)
    strided = torch.zeros(6, 4, 3, 10)[..., ::2].copy_(weight)
    turned = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for other in (
        strided,
        turned,
        weight.contiguous(memory_format=torch.channels_last),
        weight.double(),
        torch.nn.Parameter(weight),
    ):
        assert same_bits(codebook.project(other), level)
        assert torch.equal(codebook.encode(other), codes)
        assert power_of_two(other, 3, per="channel").max_exponent.equal(codebook.max_exponent)
        assert not codebook.project(other).requires_grad
    assert same_bits(codebook.decode(codes.contiguous(memory_format=torch.channels_last)), level)
    for dtype in (torch.bfloat16, torch.float16):
        coarse = weight.to(dtype)
        assert same_bits(codebook.project(coarse), codebook.project(coarse.float()))


def test_the_weights_are_left_alone() -> None:
    weight = gaussian(4, 50) * 2.0**-70  # so small that rounding lifts it
    before = weight.clone()
    for fit in ("max", "mse"):
        codebook = power_of_two(weight, 4, fit=fit, per="channel")
        codebook.decode(codebook.encode(weight))
    assert same_bits(weight, before)


def test_the_default_type_of_floats_does_not_matter() -> None:
    weight = gaussian(40) * 2.0**-100
    codebook = power_of_two(weight, 4, fit="mse")
    level = codebook.project(weight)
    torch.set_default_dtype(torch.float64)
    try:
        again = power_of_two(weight, 4, fit="mse")
        assert again.max_exponent.equal(codebook.max_exponent)
        assert same_bits(again.project(weight), level)
        assert same_bits(again.decode(again.encode(weight)), level)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("fit", ["max", "mse"])
@pytest.mark.parametrize(
    ("shape", "per"), [((0,), "tensor"), ((0, 3), "tensor"), ((3, 0), "channel"), ((), "tensor")]
)
def test_empty_and_scalar_tensors(shape: tuple[int, ...], per: Any, fit: Any) -> None:
    weight = torch.full(shape, 0.3)
    codebook = power_of_two(weight, 3, fit=fit, per=per)
    assert codebook.project(weight).shape == codebook.encode(weight).shape == shape
    assert codebook.decode(codebook.encode(weight)).tolist() == torch.full(shape, 0.25).tolist()


@pytest.mark.parametrize("fit", ["max", "mse"])
def test_a_tensor_of_no_channels(fit: Any) -> None:
    codebook = power_of_two(torch.empty(0, 3), 3, fit=fit, per="channel")
    assert codebook.max_exponent.shape == (0,)
    assert codebook.project(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("fit", ["max", "mse"])
@pytest.mark.parametrize("bits", BITS)
def test_zeros_are_legal(fit: Any, bits: int) -> None:
    layer = power_of_two(torch.zeros(3, 4), bits, fit=fit)
    assert int(layer.max_exponent) == 0
    assert layer.encode(torch.zeros(3, 4)).unique().tolist() == [2 ** (bits - 2)]
    weight = torch.stack([torch.zeros(9), torch.full((9,), -0.0), gaussian(9)])
    channels = power_of_two(weight, bits, fit=fit, per="channel")
    assert channels.max_exponent[:2].tolist() == [0, 0]
    level = channels.project(weight)
    assert same_bits(level[:2], torch.zeros(2, 9))
    assert level[2].any()


# The choice of n1.


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_the_papers_n1(per: Any) -> None:
    largest = [TINY, 3 * TINY, 5e-40, HUGE, 1e38, 1.0]
    for e in (-148, -127, -126, -125, -30, -1, 0, 1, 60, 126, 127):
        for factor in (0.75, 1.0, 1.5):
            largest += [value for value in around(math.ldexp(factor, e)) if 0 < value <= HUGE]
    expected = [paper_exponent(value) for value in largest]
    if per == "channel":
        weight = torch.tensor([[value, -value / 2, 0.0] for value in largest])
        assert power_of_two(weight, 5, per="channel").max_exponent.tolist() == expected
    else:
        tops = [
            int(power_of_two(torch.tensor([value / 2, -value]), 5).max_exponent)
            for value in largest
        ]
        assert tops == expected


def distributions() -> dict[str, list[float]]:
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(40)
    cases = {
        "gaussian": normal,
        "laplace": rng.laplace(size=40),
        "uniform": rng.uniform(-1, 1, 40),
        "heavy tail": rng.standard_cauchy(40),
        "one far out": np.append(normal[:30] / 1000, 30.0),
        "a few far out": np.append(normal[:30] / 300, [9.0, -8.0, 7.0]),
        "small": normal * 1e-38,
        "subnormal": normal * 1e-43,
        "large": normal * 1e37,
        "sparse": np.where(np.arange(40) % 5 == 0, normal, 0),
        "one": np.array([0.7]),
        "positive": np.abs(normal),
    }
    return {name: values.astype(np.float32).tolist() for name, values in cases.items()}


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("case", distributions())
def test_least_error_against_every_n1(case: str, bits: int) -> None:
    weights = distributions()[case]
    flat = [1.0] * len(weights)
    rng = np.random.default_rng(bits)
    random = (rng.random(len(weights)) ** 4).astype(np.float32).tolist()
    inward = (
        (np.abs(weights) < np.median(np.abs(weights))).astype(np.float32).tolist()
    )  # only small weights count: n1 far down
    for importance in (None, random, inward):
        weight = torch.tensor(weights)
        counted = None if importance is None else torch.tensor(importance)
        found = int(power_of_two(weight, bits, fit="mse", importance=counted).max_exponent)
        highest = paper_exponent(max(map(abs, weights)))
        candidates = range(max(highest - 20, -149), min(highest + 3, 127) + 1)
        errors = {top: squared_error(weights, importance or flat, bits, top) for top in candidates}
        least = min(errors.values())
        assert found in errors
        assert float(errors[found]) <= float(least) * (1 + 1e-12)
        assert found >= max(top for top in candidates if errors[top] == least and top <= highest)


def test_of_equal_errors_the_largest_n1_wins() -> None:
    # 0.75 is as far from 1 as from 0.5; with 2 bits there is one level, with 3 bits both are there,
    # and 1 is nearer by rule.
    assert int(power_of_two(torch.tensor([0.75]), 2, fit="mse").max_exponent) == 0
    assert int(power_of_two(torch.tensor([0.25, -0.25]), 5, fit="mse").max_exponent) == -2
    assert (
        int(power_of_two(torch.ones(4), 3, fit="mse", importance=torch.zeros(4)).max_exponent) == 0
    )


@pytest.mark.parametrize("importance", [None, "full", "inputs", "channels"])
def test_least_error_of_channels_is_that_of_each_alone(importance: str | None) -> None:
    weight = gaussian(5, 3, 2, 2) * torch.logspace(-3, 2, 5).view(-1, 1, 1, 1)
    shape = {"full": (5, 3, 2, 2), "inputs": (3, 1, 1), "channels": (5, 1, 1, 1), None: ()}[
        importance
    ]
    counted = None if importance is None else gaussian(*shape, seed=1).abs() ** 3
    together = power_of_two(
        weight, 2, fit="mse", per="channel", importance=counted
    ).max_exponent.tolist()
    each = [
        None if counted is None else counted.expand(5, 3, 2, 2)[channel] for channel in range(5)
    ]
    alone = [
        int(power_of_two(w, 2, fit="mse", importance=i).max_exponent)
        for w, i in zip(weight, each, strict=True)
    ]
    assert together == alone


def test_least_error_of_rows_longer_than_a_block() -> None:
    weight = torch.stack([gaussian(BLOCK + 900), gaussian(BLOCK + 900, seed=1)])
    weight[:, BLOCK:] *= 1000  # most of the error is in the second block
    importance = torch.ones(BLOCK + 900)
    importance[BLOCK:] = 1e-9
    for chosen in (None, importance):
        factor = np.ones(BLOCK + 900) if chosen is None else chosen.numpy().astype(np.float64)
        for row, found in zip(
            weight,
            power_of_two(weight, 3, fit="mse", per="channel", importance=chosen).max_exponent,
            strict=True,
        ):
            errors = {}
            for top in range(-8, 14):
                off = row.numpy().astype(np.float64) - nearest(row.numpy(), 3, top)
                errors[top] = float((off**2 * factor).sum())
            assert int(found) == min(errors, key=errors.__getitem__)


# What is refused.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fit", ["max", "mse"])
def test_a_weight_that_is_not_finite_is_named(bad: float, fit: Any) -> None:
    weight = torch.zeros(2, 3)
    weight[1, 2] = weight[0, 1] = bad
    with pytest.raises(PlanError, match=r"^layer1\.conv: expected finite weights, got 2 of 6"):
        power_of_two(weight, 3, fit=fit, name="layer1.conv")


def test_a_weight_that_float32_cannot_hold_is_not_finite() -> None:
    with pytest.raises(PlanError, match=r"^big: expected finite weights, got 1 of 2"):
        power_of_two(torch.tensor([1e300, 1.0], dtype=torch.float64), 3, name="big")


@given(
    st.integers(max_value=1)
    | st.integers(min_value=9)
    | st.floats()
    | st.text()
    | st.none()
    | st.booleans()
    | st.just(Apot(6))
    | st.sampled_from([3.0, "3"])  # almost bits
)
def test_impossible_bits(bits: Any) -> None:
    for make in (
        lambda: power_of_two(torch.ones(2), bits),
        lambda: PowerOfTwo(bits, torch.tensor(0)),
        lambda: check_bits(bits),
    ):
        with pytest.raises(PlanError, match="expected an integer from 2 to 8, got"):
            make()
    with pytest.raises(PlanError, match=r"^conv1: expected an integer from 2 to 8"):
        check_bits(bits, "conv1")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fit": "mean"}, 'fit "max" or "mse", got \'mean\''),
        ({"fit": None}, 'fit "max" or "mse", got None'),
        ({"per": "row"}, 'per "tensor" or "channel", got \'row\'; or .*'),
    ],
)
def test_unknown_fit_or_grouping(options: Any, expected: str) -> None:
    with pytest.raises(PlanError, match=f"^fc: expected {expected}$"):
        power_of_two(torch.ones(2, 2), 3, name="fc", **options)


def test_the_old_words_are_read_with_a_warning() -> None:
    weight = torch.tensor([[0.3, 2.0], [0.1, 0.2]])
    with pytest.warns(DeprecationWarning, match='per="tensor"'):
        old = power_of_two(weight, 3, per="layer")  # type: ignore[arg-type]
    assert old.max_exponent.shape == ()
    with pytest.warns(DeprecationWarning, match=r"PowerOfTwo\(max_exponent=\)"):
        other = PowerOfTwo(3, top=old.max_exponent)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=r"use PowerOfTwo\.max_exponent"):
        assert other.top is old.max_exponent


@pytest.mark.parametrize("width", [3, Width(3)])
def test_a_width_will_do_for_bits(width: Any) -> None:
    for codebook in (PowerOfTwo(width, torch.tensor(0)), power_of_two(torch.ones(2), width)):
        assert (codebook.bits, codebook.width) == (3, Width(3))
        assert type(codebook.bits) is int


def test_a_scalar_has_no_channels() -> None:
    with pytest.raises(PlanError, match=r"^s: expected a tensor with output channels"):
        power_of_two(torch.tensor(1.0), 3, per="channel", name="s")


@pytest.mark.parametrize("top", [torch.zeros(2, 2, dtype=torch.int32), torch.tensor(1.0)])
def test_exponents_are_integers_for_the_tensor_or_its_channels(top: Tensor) -> None:
    expected = r"^max_exponent: expected an integer scalar or vector, got"
    with pytest.raises(PlanError, match=expected):
        PowerOfTwo(3, top)


@pytest.mark.parametrize("shape", [(2, 4), (4,), ()])
def test_another_number_of_channels(shape: tuple[int, ...]) -> None:
    codebook = PowerOfTwo(3, torch.tensor([0, 1, 2]))
    for call in (codebook.project, codebook.encode):
        with pytest.raises(PlanError, match="expected a tensor of 3 output channels, got shape"):
            call(torch.ones(shape))
    with pytest.raises(PlanError, match="expected a tensor of 3 output channels, got shape"):
        codebook.decode(torch.ones(shape, dtype=torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 7])
def test_a_code_beyond_the_last_level(bits: int) -> None:
    codebook = PowerOfTwo(bits, torch.tensor(0))
    last = 2 ** (bits - 1)
    assert codebook.decode(torch.tensor([0, last], dtype=torch.uint8)).tolist() == [-1, 1]
    with pytest.raises(
        PlanError, match=f"^codes: expected at most {last} at {bits} bits, got {last + 1}"
    ):
        codebook.decode(torch.tensor([0, last + 1], dtype=torch.uint8))
