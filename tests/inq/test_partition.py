"""Ranks and the growth of the frozen set, against slow loops over single weights."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.inq.networks import far
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.inq.partition import (
    PORTIONS,
    SPARSE_PORTIONS,
    check_order,
    check_portions,
    default_portions,
    grow,
    order_name,
    orders_of,
    rank,
)
from octavo.network.layers import find_layers


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def slow_grow(frozen: list[bool], ranks: list[float], portion: float) -> list[bool]:
    """One weight at a time: the free one of the highest rank, the first of equals."""
    grown = list(frozen)
    while sum(grown) < round(portion * len(grown)):
        free = [place for place in range(len(grown)) if not grown[place]]
        grown[max(free, key=lambda place: (ranks[place], -place))] = True
    return grown


@st.composite
def growing(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    size = math.prod(shape)
    ranks = draw(
        st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 0.5, 3.0]), min_size=size, max_size=size)
    )  # many equals
    frozen = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    portion = draw(st.floats(0, 1))
    return (
        torch.tensor(frozen, dtype=torch.bool).view(shape),
        torch.tensor(ranks).view(shape),
        portion,
    )


@given(growing())
@settings(deadline=None)
def test_growth_is_that_of_the_slow_loop(example: tuple[Tensor, Tensor, float]) -> None:
    frozen, ranks, portion = example
    grown = grow(frozen, ranks, portion)
    assert (grown.dtype, grown.shape) == (torch.bool, frozen.shape)
    assert grown.flatten().tolist() == slow_grow(
        frozen.flatten().tolist(), ranks.flatten().tolist(), portion
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
        )  # new ranks: the free weights have moved
        assert int(grown.sum()) == round(portion * size)
        assert bool(grown[frozen].all())
        frozen = grown
    assert bool(frozen.all())


def test_only_the_free_are_ranked() -> None:
    frozen = torch.tensor([True, True, False, False, False, False])
    ranks = torch.tensor([9.0, 8.0, 1.0, 2.0, 3.0, 0.0])
    assert grow(frozen, ranks, 0.5).tolist() == [True, True, False, False, True, False]


@pytest.mark.parametrize("portion", [0.0, 0.25, 0.5])
def test_a_portion_that_is_frozen_already_changes_nothing(portion: float) -> None:
    frozen = torch.tensor([True, False, True, False])
    grown = grow(frozen, torch.tensor([0.0, 9.0, 0.0, 9.0]), portion)
    assert grown.tolist() == frozen.tolist()
    assert grown.data_ptr() != frozen.data_ptr()  # the caller may write into what it gets


def test_growth_is_pure() -> None:
    frozen, ranks = torch.zeros(3, 4, dtype=torch.bool), gaussian(3, 4)
    before = frozen.clone(), ranks.clone()
    first = grow(frozen, ranks, 0.5)
    first |= True
    assert torch.equal(frozen, before[0])
    assert torch.equal(ranks, before[1])
    assert int(grow(frozen, ranks, 0.5).sum()) == 6


def test_weights_of_equal_rank_freeze_in_the_tensors_order() -> None:
    grown = grow(torch.zeros(4, 50, dtype=torch.bool), torch.zeros(4, 50), 0.375)
    assert grown.flatten().tolist() == [True] * 75 + [False] * 125


def test_the_order_is_the_tensors_own_whatever_its_layout() -> None:
    ranks = torch.zeros(5, 4)
    grown = grow(torch.zeros(5, 4, dtype=torch.bool).T.contiguous().T, ranks.T.contiguous().T, 0.4)
    assert grown.flatten().tolist() == [True] * 8 + [False] * 12


# Ranks.


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
    assert torch.allclose(rank(weight, codebook, far), expected, rtol=0, atol=1e-6)
    assert torch.equal(rank(weight, codebook, "distance"), -rank(weight, codebook, far))


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
    found = rank(weight, PowerOfTwo(bits, torch.tensor(tops)), "relative")
    assert torch.allclose(found.flatten(), torch.tensor(expected), rtol=0, atol=1e-5)
    one = PowerOfTwo(bits, torch.tensor(0))  # one n1 for the layer
    assert torch.allclose(rank(weight[1], one, "relative"), found[1])


def test_what_freezes_first() -> None:
    weight = torch.tensor(
        [1.0, -0.7, 0.5, 0.06, -2.0]
    )  # with levels 0, ±1/2, ±1 at distances 0, 0.2, 0, 0.06, 1
    codebook = PowerOfTwo(3, torch.tensor(0))
    cases: list[tuple[Any, list[int]]] = [
        ("magnitude", [4, 0, 1, 2, 3]),
        ("distance", [0, 2, 3, 1, 4]),
        ("relative", [0, 2, 3, 1, 4]),  # 0, 0, 0.06 / 0.25, 0.2 / 0.5, 1 / 1
        (far, [4, 1, 3, 0, 2]),
    ]
    for order, ranking in cases:
        ranks, frozen = rank(weight, codebook, order), torch.zeros(5, dtype=torch.bool)
        assert ranks.dtype == torch.float32
        for count, place in enumerate(ranking, start=1):
            grown = grow(frozen, ranks, count / 5)
            assert (grown & ~frozen).nonzero().flatten().tolist() == [place], order
            frozen = grown


def test_random_is_drawn_from_the_generator_and_from_nothing_else() -> None:
    weight = gaussian(40, 50)
    codebook = power_of_two(weight, 3)
    torch.manual_seed(1)
    first = rank(weight, codebook, "random", generator=generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, rank(weight, codebook, "random", generator=generator(5)))
    assert torch.equal(first, rank(weight * 2, codebook, "random", generator=generator(5)))
    assert not torch.equal(first, rank(weight, codebook, "random", generator=generator(6)))
    assert first.shape == weight.shape
    chosen = grow(torch.zeros(40, 50, dtype=torch.bool), first, 0.5)
    assert (
        0.4 < float(chosen[weight.abs() > weight.abs().median()].float().mean()) < 0.6
    )  # large or small alike
    assert first.unique().numel() > 1990


@pytest.mark.parametrize("order", ["magnitude", "distance", far])
def test_ranks_of_half_precision_and_of_parameters(order: Any) -> None:
    weight = gaussian(30).bfloat16()
    codebook = power_of_two(weight, 4)
    expected = rank(weight.float(), codebook, order)
    before = weight.clone()
    assert torch.equal(rank(weight, codebook, order), expected)
    assert not rank(torch.nn.Parameter(weight), codebook, order).requires_grad
    assert torch.equal(weight, before)


def test_a_function_that_ranks_weights_is_an_order() -> None:
    weight, codebook = gaussian(3, 5), PowerOfTwo(3, torch.tensor([0, 1, -1]))
    calls = []

    def column(weight: Tensor, codebook: Any) -> Tensor:
        calls.append((weight.clone(), codebook))
        weight.zero_()  # what it is given is its own
        return torch.arange(5, dtype=torch.float64).expand(3, 5)

    ranks = rank(weight, codebook, column)
    assert ranks.dtype == torch.float32
    assert torch.equal(ranks, torch.arange(5.0).expand(3, 5))
    assert torch.equal(calls[0][0], gaussian(3, 5))
    assert calls[0][1] is codebook
    assert torch.equal(weight, gaussian(3, 5))


class Named:
    """An order that is an object."""

    def __call__(self, weight: Tensor, codebook: Any) -> Tensor:
        return weight


@pytest.mark.parametrize(
    ("order", "name"), [("random", "random"), (far, "far"), (Named(), "Named")]
)
def test_an_order_has_a_name(order: Any, name: str) -> None:
    assert order_name(order) == name


def several(weight: Tensor, codebook: Any) -> Any:
    return weight, weight


def flat(weight: Tensor, codebook: Any) -> Tensor:
    return weight.flatten()


def undefined(weight: Tensor, codebook: Any) -> Tensor:
    return weight.log()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (several, r"to return a tensor of the weight's shape \(3, 5\), got tuple$"),
        (flat, r"to return a tensor of the weight's shape \(3, 5\), got \(15,\)$"),
        (undefined, "to return numbers, got NaN$"),
    ],
)
def test_a_function_that_returns_no_ranks(function: Any, message: str) -> None:
    wanted = rf"^order: expected {function.__name__}\(weight, codebook\) {message}"
    with pytest.raises(PlanError, match=wanted):
        rank(gaussian(3, 5), PowerOfTwo(3, torch.tensor(0)), function)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, PORTIONS), (0.49, PORTIONS), (0.5, SPARSE_PORTIONS), (1.0, SPARSE_PORTIONS)],
)
def test_sparse_networks_get_finer_portions(share: float, expected: tuple[float, ...]) -> None:
    layer = find_layers(nn.Linear(100, 1))[0][0]
    mask = torch.arange(100).view(1, 100) < 100 * share
    assert default_portions([layer], {layer.name: mask}) == expected


# What is refused.

KNOWN = ("magnitude", "distance", "relative", "random")
UNKNOWN = "^order: expected one of magnitude, distance, relative, random, or a function "

# An unknown order: any other text, and values that are no order and no sequence of orders.
unknown = st.one_of(
    st.text().filter(lambda text: text not in (*KNOWN, "far")),
    st.none(),
    st.integers(),
    st.floats(),
    st.dictionaries(st.text(), st.integers()),
)


@given(unknown)
@settings(deadline=None, max_examples=40)
def test_an_unknown_order(order: Any) -> None:
    codebook = PowerOfTwo(3, torch.tensor(0))
    checks = [
        lambda: check_order(order),
        lambda: rank(torch.ones(2), codebook, order),
        lambda: orders_of(order, 2),
        lambda: orders_of(["magnitude", order], 2),
    ]
    for check in checks:
        with pytest.raises(PlanError, match=UNKNOWN) as caught:
            check()
        assert str(caught.value).endswith(f"got {order!r}")


def test_an_order_that_left_the_package_is_told_its_new_place() -> None:
    with pytest.raises(
        PlanError,
        match=r'^order: "far" is no longer .* benchmarks/orders\.py .*orders\.py:far',
    ):
        check_order("far")


@pytest.mark.parametrize("order", [*KNOWN, far])
def test_the_known_orders(order: Any) -> None:
    check_order(order)


def test_one_order_is_that_of_every_portion_and_several_are_one_each() -> None:
    assert orders_of(far, 3) == (far, far, far)
    assert orders_of(["magnitude", far, "random"], 3) == ("magnitude", far, "random")


@given(st.lists(st.sampled_from(KNOWN), max_size=5), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_orders_are_one_for_each_portion(orders: Any, portions: int) -> None:
    if len(orders) == portions:
        assert orders_of(orders, portions) == tuple(orders)
        return
    wanted = rf"^order: expected one, or {portions}, one for each portion; got {len(orders)}$"
    with pytest.raises(PlanError, match=wanted):
        orders_of(orders, portions)


def rise_to_one(portions: Any) -> bool:
    """The rule, spelled out: every share lies above the one before it, and the last is 1."""
    last = 0.0
    for portion in portions:
        if not last < portion <= 1:
            return False
        last = portion
    return last == 1


shares = st.sampled_from([-0.1, 0.0, 0.5, 0.7, 0.99999999999, 1.0, 1, 1.5, math.nan, math.inf])


@given(st.lists(shares, max_size=4).map(tuple))
@example((0.5, 0.75, 0.875, 1.0))
@example((1e-9, 1.0))
@example((1,))
@settings(deadline=None)
def test_portions_rise_strictly_from_above_0_to_exactly_1(portions: tuple[float, ...]) -> None:
    if rise_to_one(portions):
        check_portions(portions)
        return
    wanted = r"^portions: expected shares that rise strictly from above 0 to exactly 1, got"
    with pytest.raises(PlanError, match=wanted):
        check_portions(portions)


@given(st.one_of(st.none(), st.floats(), st.text(min_size=1), st.lists(st.text(), min_size=1)))
@settings(deadline=None, max_examples=30)
def test_portions_that_are_no_numbers(portions: Any) -> None:
    with pytest.raises(PlanError, match=r"^portions: expected shares"):
        check_portions(portions)
