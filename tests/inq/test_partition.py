"""Scores and the growth of the frozen set, against slow loops over single weights."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.inq.partition import check_order, check_portions, grow, orders_of, score

PORTIONS = (0.5, 0.75, 0.875, 1.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def slow_grow(frozen: list[bool], scores: list[float], portion: float) -> list[bool]:
    """One weight at a time: the free one of the highest score, the first of equals."""
    grown = list(frozen)
    while sum(grown) < round(portion * len(grown)):
        free = [place for place in range(len(grown)) if not grown[place]]
        grown[max(free, key=lambda place: (scores[place], -place))] = True
    return grown


@st.composite
def growing(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    size = math.prod(shape)
    scores = draw(
        st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 0.5, 3.0]), min_size=size, max_size=size)
    )  # many equals
    frozen = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    portion = draw(st.floats(0, 1))
    return (
        torch.tensor(frozen, dtype=torch.bool).view(shape),
        torch.tensor(scores).view(shape),
        portion,
    )


@given(growing())
@settings(deadline=None)
def test_growth_is_that_of_the_slow_loop(example: tuple[Tensor, Tensor, float]) -> None:
    frozen, scores, portion = example
    grown = grow(frozen, scores, portion)
    assert (grown.dtype, grown.shape) == (torch.bool, frozen.shape)
    assert grown.flatten().tolist() == slow_grow(
        frozen.flatten().tolist(), scores.flatten().tolist(), portion
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 997])
@pytest.mark.parametrize(
    "portions", [PORTIONS, (0.3, 0.5, 0.8, 0.9, 0.95, 1.0), (0.001, 1.0), (1.0,)]
)
def test_the_counts_are_exact_and_nothing_thaws(size: int, portions: tuple[float, ...]) -> None:
    frozen = torch.zeros(size, dtype=torch.bool)
    for stage, portion in enumerate(portions):
        grown = grow(
            frozen, gaussian(size, seed=stage), portion
        )  # new scores: the free weights have moved
        assert int(grown.sum()) == round(portion * size)
        assert bool(grown[frozen].all())
        frozen = grown
    assert bool(frozen.all())


def test_only_the_free_are_ranked() -> None:
    frozen = torch.tensor([True, True, False, False, False, False])
    scores = torch.tensor([9.0, 8.0, 1.0, 2.0, 3.0, 0.0])
    assert grow(frozen, scores, 0.5).tolist() == [True, True, False, False, True, False]


@pytest.mark.parametrize("portion", [0.0, 0.25, 0.5])
def test_a_portion_that_is_frozen_already_changes_nothing(portion: float) -> None:
    frozen = torch.tensor([True, False, True, False])
    grown = grow(frozen, torch.tensor([0.0, 9.0, 0.0, 9.0]), portion)
    assert grown.tolist() == frozen.tolist()
    assert grown.data_ptr() != frozen.data_ptr()  # the caller may write into what it gets


def test_growth_is_pure() -> None:
    frozen, scores = torch.zeros(3, 4, dtype=torch.bool), gaussian(3, 4)
    before = frozen.clone(), scores.clone()
    first = grow(frozen, scores, 0.5)
    first |= True
    assert torch.equal(frozen, before[0])
    assert torch.equal(scores, before[1])
    assert int(grow(frozen, scores, 0.5).sum()) == 6


def test_equal_scores_freeze_in_the_tensors_order() -> None:
    grown = grow(torch.zeros(4, 50, dtype=torch.bool), torch.zeros(4, 50), 0.375)
    assert grown.flatten().tolist() == [True] * 75 + [False] * 125


def test_the_order_is_the_tensors_own_whatever_its_layout() -> None:
    scores = torch.zeros(5, 4)
    grown = grow(torch.zeros(5, 4, dtype=torch.bool).T.contiguous().T, scores.T.contiguous().T, 0.4)
    assert grown.flatten().tolist() == [True] * 8 + [False] * 12


# Scores.


def distances(weight: Tensor, tops: list[int], bits: int) -> list[list[float]]:
    """How far each weight is from the nearest of its row's levels, by trying all."""
    result = []
    for row, top in zip(weight.tolist(), tops, strict=True):
        levels = [0.0] + [
            math.ldexp(sign, top - k) for k in range(2 ** (bits - 2)) for sign in (1, -1)
        ]
        result.append([min(abs(value - level) for level in levels) for value in row])
    return result


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_distance_and_far(bits: int) -> None:
    weight, tops = gaussian(3, 200), [-1, 0, 1]
    codebook = PowerOfTwo(bits, torch.tensor(tops))
    expected = torch.tensor(distances(weight, tops, bits))
    assert torch.allclose(score(weight, codebook, "far"), expected, rtol=0, atol=1e-6)
    assert torch.equal(score(weight, codebook, "distance"), -score(weight, codebook, "far"))


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_relative_distances_are_in_units_of_the_level_and_next_to_zero_of_half_the_smallest(
    bits: int,
) -> None:
    weight, tops = gaussian(3, 200), [-1, 0, 1]
    expected = []
    for row, top in zip(weight.tolist(), tops, strict=True):
        smallest = math.ldexp(1, top - 2 ** (bits - 2) + 1)
        for value in row:
            sizes = [0.0] + [math.ldexp(1, top - k) for k in range(2 ** (bits - 2))]
            off, level = min((abs(abs(value) - size), size) for size in sizes)
            expected.append(-off / max(level, smallest / 2))
    found = score(weight, PowerOfTwo(bits, torch.tensor(tops)), "relative")
    assert torch.allclose(found.flatten(), torch.tensor(expected), rtol=0, atol=1e-5)
    one = PowerOfTwo(bits, torch.tensor(0))  # one n1 for the layer
    assert torch.allclose(score(weight[1], one, "relative"), found[1])


def test_what_freezes_first() -> None:
    weight = torch.tensor(
        [1.0, -0.7, 0.5, 0.06, -2.0]
    )  # with levels 0, ±1/2, ±1 at distances 0, 0.2, 0, 0.06, 1
    codebook = PowerOfTwo(3, torch.tensor(0))
    expected: list[tuple[Any, list[int]]] = [
        ("magnitude", [4, 0, 1, 2, 3]),
        ("distance", [0, 2, 3, 1, 4]),
        ("relative", [0, 2, 3, 1, 4]),  # 0, 0, 0.06 / 0.25, 0.2 / 0.5, 1 / 1
        ("far", [4, 1, 3, 0, 2]),
    ]
    for order, ranking in expected:
        scores, frozen = score(weight, codebook, order), torch.zeros(5, dtype=torch.bool)
        assert scores.dtype == torch.float32
        for count, place in enumerate(ranking, start=1):
            grown = grow(frozen, scores, count / 5)
            assert (grown & ~frozen).nonzero().flatten().tolist() == [place], order
            frozen = grown


def test_random_is_drawn_from_the_generator_and_from_nothing_else() -> None:
    weight = gaussian(40, 50)
    codebook = power_of_two(weight, 3)
    torch.manual_seed(1)
    first = score(weight, codebook, "random", generator=generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, score(weight, codebook, "random", generator=generator(5)))
    assert torch.equal(first, score(weight * 2, codebook, "random", generator=generator(5)))
    assert not torch.equal(first, score(weight, codebook, "random", generator=generator(6)))
    assert first.shape == weight.shape
    chosen = grow(torch.zeros(40, 50, dtype=torch.bool), first, 0.5)
    assert (
        0.4 < float(chosen[weight.abs() > weight.abs().median()].float().mean()) < 0.6
    )  # large or small alike
    assert first.unique().numel() > 1990


@pytest.mark.parametrize("order", ["magnitude", "distance", "far"])
def test_scores_of_half_precision_and_of_parameters(order: Any) -> None:
    weight = gaussian(30).bfloat16()
    codebook = power_of_two(weight, 4)
    expected = score(weight.float(), codebook, order)
    before = weight.clone()
    assert torch.equal(score(weight, codebook, order), expected)
    assert not score(torch.nn.Parameter(weight), codebook, order).requires_grad
    assert torch.equal(weight, before)


# What is refused.


@pytest.mark.parametrize("order", ["size", "", "Magnitude", None, 3])
def test_an_unknown_order(order: Any) -> None:
    for check in (
        lambda: check_order(order),
        lambda: score(torch.ones(2), PowerOfTwo(3, torch.tensor(0)), order),
    ):
        with pytest.raises(
            PlanError, match=f"^order: expected one of magnitude, .*, random, got {order!r}$"
        ):
            check()


@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", "far", "random"])
def test_the_known_orders(order: str) -> None:
    check_order(order)


def test_one_order_is_that_of_every_portion_and_several_are_one_each() -> None:
    assert orders_of("far", 3) == ("far", "far", "far")
    assert orders_of(["magnitude", "distance", "random"], 3) == ("magnitude", "distance", "random")


@pytest.mark.parametrize("orders", [(), ["far"], ["far", "far", "far"]])
def test_orders_are_one_a_portion(orders: Any) -> None:
    with pytest.raises(
        PlanError, match=rf"^order: expected one, or 2, one a portion; got {len(orders)}$"
    ):
        orders_of(orders, 2)


@pytest.mark.parametrize("orders", ["size", None, 3, ["far", "size"], ["far", None]])
def test_an_unknown_order_of_a_portion(orders: Any) -> None:
    wrong = orders[1] if isinstance(orders, list) else orders
    with pytest.raises(
        PlanError,
        match=f"^order: expected one of magnitude, distance, relative, far, random, got {wrong!r}$",
    ):
        orders_of(orders, 2)


@pytest.mark.parametrize(
    "portions",
    [
        (),
        (0.5,),
        (0.5, 0.9),
        (0.5, 0.5, 1.0),
        (0.7, 0.5, 1.0),
        (0.0, 1.0),
        (-0.1, 1.0),
        (0.5, 1.0, 1.5),
        (1.0, 1.0),
        (math.nan, 1.0),
        (0.5, math.nan),
        (0.5, 0.99999999999),
        (math.inf,),
    ],
)
def test_impossible_portions(portions: tuple[float, ...]) -> None:
    with pytest.raises(
        PlanError,
        match=r"^portions: expected shares that rise strictly from above 0 to exactly 1, got",
    ):
        check_portions(portions)


@pytest.mark.parametrize("portions", [(1.0,), (1,), PORTIONS, (1e-9, 1.0)])
def test_possible_portions(portions: tuple[float, ...]) -> None:
    check_portions(portions)
