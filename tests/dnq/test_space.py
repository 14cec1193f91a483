"""What the search chooses among: budgets are kept to the last weight and used up, whatever the
losses say."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.dnq.space import Choice, Space, layer_options
from octavo.errors import BudgetError, PlanError
from octavo.plan import Budget

BUDGETS = ("average_bits", "ratio", "bytes", "bit_ops")


def spent(choice: Choice, weights: tuple[int, ...], macs: tuple[int, ...], kind: str) -> Fraction:
    """What a choice costs, in the terms of a budget of this kind, in whole numbers."""
    bits = sum(w * b for w, b in zip(weights, choice, strict=True))
    if kind == "bit_ops":
        return Fraction(sum(m * b for m, b in zip(macs, choice, strict=True)))
    if kind == "bytes":
        return Fraction(-(-bits // 8))
    return (
        Fraction(bits, sum(weights))
        if kind == "average_bits"
        else Fraction(bits, 32 * sum(weights))
    )


def exactly_allowed(budget: Budget, kind: str) -> Fraction:
    """What the budget allows, in the same terms."""
    most = Fraction(getattr(budget, kind))
    return 1 / most if kind == "ratio" else most


def allowed(budget: Budget, kind: str) -> Fraction:
    """As above, but that a billionth over is not over where the terms are no whole numbers."""
    return exactly_allowed(budget, kind) * (
        1 if kind in ("bytes", "bit_ops") else 1 + Fraction(1, 10**9)
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[Space, Choice, np.ndarray, str]:
    """A space with some pins and a budget that something meets, any choice in it, and losses that
    need not fall."""
    layers = draw(st.integers(1, 5))
    counts = st.lists(
        st.integers(1, draw(st.sampled_from([3, 1000, 10**7]))), min_size=layers, max_size=layers
    )
    weights, macs = tuple(draw(counts)), tuple(draw(counts))
    bits = st.lists(st.integers(2, 8), min_size=1, max_size=4, unique=True).map(
        lambda some: tuple(sorted(some))
    )
    options = tuple(draw(bits) for _ in range(layers))
    kind = draw(st.sampled_from(BUDGETS))
    least, most = (
        spent(tuple(some[end] for some in options), weights, macs, kind) for end in (0, -1)
    )
    limit = least + (most - least) * Fraction(draw(st.integers(0, 12)), 10)
    value: Any = (
        int(limit)
        if kind in ("bytes", "bit_ops")
        else float(1 / limit if kind == "ratio" else limit)
    )
    names = tuple(f"layer{i}" for i in range(layers))
    space = Space(names, options, weights, macs, Budget(**{kind: value}))
    loss = np.array(
        draw(
            st.lists(
                st.lists(st.integers(-2, 9), min_size=9, max_size=9),
                min_size=layers,
                max_size=layers,
            )
        ),
        float,
    )
    return space, tuple(draw(st.sampled_from(some)) for some in options), loss, kind


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_projection_is_within_the_budget_and_of_the_options(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, loss, kind = problem
    assert space.budget is not None
    for keep in [None, *range(len(choice))]:
        found = space.project(choice, loss, keep=keep)
        assert spent(found, space.weights, space.macs, kind) <= allowed(space.budget, kind)
        assert all(bits in options for bits, options in zip(found, space.options, strict=True))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_projection_leaves_no_step_that_fits_and_helps(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, loss, kind = problem
    assert space.budget is not None
    found = space.project(choice, loss)
    for layer, options in enumerate(space.options):
        for more in options[options.index(found[layer]) + 1 :][:1]:
            other = (*found[:layer], more, *found[layer + 1 :])
            helps = loss[layer, more] < loss[layer, found[layer]]
            assert not helps or spent(other, space.weights, space.macs, kind) > exactly_allowed(
                space.budget, kind
            )


@settings(deadline=None, max_examples=40)
@given(problems())
def test_what_fits_and_cannot_be_bettered_is_left_alone(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, loss, _ = problem
    once = space.project(choice, loss)
    assert space.project(once, loss) == once


@settings(deadline=None, max_examples=40)
@given(problems())
def test_a_kept_layer_changes_only_where_the_others_cannot_make_room(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, loss, kind = problem
    assert space.budget is not None
    for keep in range(len(choice)):
        barest = tuple(
            choice[at] if at == keep else options[0] for at, options in enumerate(space.options)
        )
        if spent(barest, space.weights, space.macs, kind) <= exactly_allowed(space.budget, kind):
            assert space.project(choice, loss, keep=keep)[keep] == choice[keep]


@pytest.mark.parametrize("kind", BUDGETS)
def test_each_budget_allows_exactly_what_a_plan_of_that_cost_is_allowed(kind: str) -> None:
    weights, macs, options = (97, 5, 40), (7, 300, 11), ((2, 3, 4, 5),) * 3
    for choice in itertools.product(*options):
        cost = Space(("a", "b", "c"), options, weights, macs).plan(choice).cost()
        budget = Budget(**{kind: getattr(cost, kind)})
        space = Space(("a", "b", "c"), options, weights, macs, budget)
        for other in itertools.product(*options):
            assert space.fits(other) == budget.allows(space.plan(other).cost())


def test_layers_give_way_in_the_order_of_what_a_freed_bit_hurts() -> None:
    loss = np.full((2, 9), np.nan)
    loss[0, 2:6], loss[1, 2:6] = [8.0, 4.0, 2.0, 1.5], [3.0, 2.0, 1.0, 0.0]
    equal = Space(("a", "b"), ((2, 3, 4, 5),) * 2, (10, 10), (1, 1), Budget(average_bits=4))
    assert equal.project((5, 5), loss) == (4, 4)  # a's last bit saves 0.5, each of b's 1
    assert equal.project((2, 2), loss) == (4, 4)  # a's first two save 4 and 2
    heavy = Space(("a", "b"), ((2, 3, 4, 5),) * 2, (10, 1000), (1, 1), Budget(bytes=507))
    assert heavy.project((5, 5), loss) == (5, 4)  # a bit of b frees a hundred times as much
    light = Space(("a", "b"), ((2, 3, 4, 5),) * 2, (10, 1000), (1, 1), Budget(bit_ops=8))
    assert light.project((5, 5), loss) == (4, 4)  # bit operations do not count weights


def test_without_a_budget_a_projection_changes_nothing() -> None:
    space = Space(("a", "b"), ((2, 3, 4, 5),) * 2, (10, 10), (1, 1))
    loss = np.array([[9.0 - bits for bits in range(9)]] * 2)
    for choice in itertools.product((2, 3, 4, 5), repeat=2):
        assert space.project(choice, loss) == choice


def test_pins_are_kept_whatever_they_cost() -> None:
    options = layer_options(("a", "b", "c"), (2, 3, 4, 5), {"b": 8})
    space = Space(("a", "b", "c"), options, (10, 10, 10), (1, 1, 1), Budget(average_bits=13 / 3))
    loss = np.array(
        [[9.0 - bits for bits in range(9)], [0.0] * 9, [9.0 - bits for bits in range(9)]]
    )
    for a, c in itertools.product((2, 3, 4, 5), repeat=2):
        found = space.project((a, 8, c), loss)
        assert found[1] == 8
        assert sum(found) == 13


@pytest.mark.parametrize(
    ("budget", "given", "feasible"),
    [
        (Budget(average_bits=1.9), "1.9", " 2 to 5 average bits"),
        (Budget(ratio=16.1), "16.1", " 6.40 to 16.00"),
        (Budget(bytes=25), "25", " 26 to 64 bytes"),
        (Budget(bit_ops=2001), "2001", " 2,002 to 5,005 bit operations"),
    ],
)
def test_a_budget_that_nothing_meets_says_what_is_feasible(
    budget: Budget, given: str, feasible: str
) -> None:
    with pytest.raises(BudgetError) as error:
        Space(("a", "b"), ((2, 3, 4, 5),) * 2, (97, 5), (1000, 1), budget)
    message = str(error.value)
    assert "\n" not in message
    assert given in message
    assert feasible in message


@pytest.mark.parametrize(
    "budget", [Budget(average_bits=2), Budget(ratio=16), Budget(bytes=26), Budget(bit_ops=2002)]
)
def test_a_budget_that_only_the_cheapest_choice_meets_is_met(budget: Budget) -> None:
    space = Space(("a", "b"), ((2, 3, 4, 5),) * 2, (97, 5), (1000, 1), budget)
    loss = np.array([[0.0] * 9] * 2)
    cheapest = space.project((5, 5), loss)
    assert spent(cheapest, (97, 5), (1000, 1), "bytes") == 26 or budget.bit_ops
    assert cheapest[0] == 2


def test_a_plan_of_a_choice_knows_what_it_costs() -> None:
    plan = Space(("a", "b"), ((2, 3, 4, 5),) * 2, (97, 5), (1000, 1)).plan((3, 5))
    cost = plan.cost()
    assert dict(plan) == {"a": 3, "b": 5}
    assert (cost.bytes, cost.bit_ops) == (math.ceil((291 + 25) / 8), 3005)
    assert cost.average_bits == pytest.approx(316 / 102)


def test_options_are_ascending_and_pins_have_one() -> None:
    assert layer_options(("a", "b"), (5, 2, 3, 2), {"b": 8}) == ((2, 3, 5), (8,))


@pytest.mark.parametrize(
    ("options", "pins", "message"),
    [
        ((), {}, "options: expected at least one"),
        ((1, 2), {}, "options: expected an integer from 2 to 8, got 1"),
        ((2, 9), {}, "got 9"),
        ((2, 3.0), {}, r"got 3\.0"),
        ((2, True), {}, "got True"),
        ((2,), {"a": 1}, "got 1"),
        ((2,), {"frist": 3}, "pin frist: no layer that is searched.*'first'"),
    ],
)
def test_options_that_are_none_are_refused(options: Any, pins: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        layer_options(("first", "a"), options, pins)
