"""The space of a search: actions, steps between them, and what choices cost."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.dnq.prices import within
from octavo.dnq.space import DOWN, UP, Action, Space, layer_widths
from octavo.errors import PlanError
from octavo.formats.width import FLOAT, Apot, Width, WidthLike, read_width
from octavo.plan import Budget

WIDTHS = [*map(Width, range(2, 9)), *map(Apot, range(5, 9))]
ALL = [Action(width, bits) for width in WIDTHS for bits in (None, *range(2, 9), FLOAT)]


def actions(*widths: WidthLike) -> tuple[Action, ...]:
    return tuple(Action(read_width(width)) for width in widths)


TWO = (actions(2, 3, 4, 5),) * 2


# Actions.


def test_an_action_comes_back_from_its_text_and_from_what_stands_for_it() -> None:
    assert len(set(ALL)) == len({str(action) for action in ALL}) == len(ALL)
    for action in ALL:
        assert Action.parse(str(action)) == action == Action.parse(action.written())
    assert [str(Action.parse(text)) for text in (3, "apot6", "3x8")] == ["3", "apot6", "3x8"]
    assert Action(Width(3)).written() == 3
    assert Action(Apot(6), 4).written() == "apot6x4"


def test_actions_differ_where_their_factors_do_not() -> None:
    assert Action(Width(2), 8) != Action(Width(4), 4)
    assert Action(Width(6), 4) != Action(Apot(6), 4)
    assert Action(Width(2), FLOAT) != Action(Width(2))


def test_the_factor_is_what_a_weight_or_a_multiply_accumulate_costs() -> None:
    some = [Action(Width(3)), Action(Width(3), 8), Action(Apot(5), 4), Action(Width(2), FLOAT)]
    assert [action.factor for action in some] == [3, 24, 20, 64]


def test_actions_are_sorted_by_factor_then_codebook_then_width() -> None:
    texts = ["2x4", "2x8", "4x4", "3x8", "6x4", "apot6x4", "2x32"]
    ascending = [Action.parse(text) for text in texts]
    assert sorted(ascending[3:] + ascending[:3], key=lambda action: action.size) == ascending
    plain = [Action(width) for width in WIDTHS]
    assert [action.width for action in sorted(plain, key=lambda action: action.size)] == sorted(
        WIDTHS
    )


NEARLY = ["3x", "x8", "3x9", "9x8", "3x16", "3x4x8", "apot3x8", "3x-8", "", "x", 9, 3.0]


@given(
    st.sampled_from(NEARLY)
    | st.text("0123456789xapot.- ", max_size=8)
    | st.integers()
    | st.booleans()
    | st.none()
    | st.floats()
    | st.lists(st.integers(2, 8), max_size=2)
)
@settings(max_examples=200, deadline=None)
def test_anything_is_read_as_an_action_or_refused(value: Any) -> None:
    try:
        action = Action.parse(value)
    except PlanError:
        return
    assert action in ALL
    assert value not in NEARLY


@pytest.mark.parametrize("bits", [0, 1, 9, 16, True])
def test_bits_of_inputs_that_there_are_not_are_refused(bits: int) -> None:
    with pytest.raises(PlanError, match="bits of inputs: expected an integer from 2 to 8"):
        Action(Width(3), bits)


def test_a_plan_takes_no_action_for_bits() -> None:
    from octavo.plan import Plan

    for wrong in (Action(Width(2), 4), "3x4"):
        with pytest.raises(PlanError, match=r"^a: expected 2 to 8, apot5 to"):
            Plan({"a": wrong})  # type: ignore[dict-item]


# Steps.


def texts_of_steps(some: tuple[Action, ...], action: int, direction: int) -> list[str]:
    space = within(Space(("a",), (some,), (10,), (1,)), Budget(average_bits=8))
    steps = space.steps[0][action, direction]
    for step in steps:
        assert step.cost == 10 * (some[step.action].factor - some[action].factor)
    return [str(some[step.action]) for step in steps]


def test_steps_go_to_every_neighbour_of_the_next_factor() -> None:
    some = actions(3, 4, 5, "apot5", 6)
    assert texts_of_steps(some, 0, UP) == ["4"]
    assert texts_of_steps(some, 1, UP) == ["5", "apot5"]
    assert texts_of_steps(some, 3, UP) == ["6"]
    assert texts_of_steps(some, 4, DOWN) == ["5", "apot5"]
    assert texts_of_steps(some, 0, DOWN) == texts_of_steps(some, 4, UP) == []


def test_steps_of_both_parts_change_one_of_them() -> None:
    some = tuple(Action.parse(text) for text in ("2x4", "3x4", "2x8", "3x8"))
    space = within(Space(("a",), (some,), (10,), (1,)), Budget(bit_ops=99))
    to = [[str(some[step.action]) for step in space.steps[0][now, UP]] for now in range(4)]
    assert to == [["2x8", "3x4"], ["3x8"], ["3x8"], []]


def test_steps_go_by_cost_where_the_order_of_costs_is_another() -> None:
    some = actions(4, 5, "apot5", 6, "apot6")
    costs = np.array([[40.0, 50.0, 52.0, 51.0, 60.0]])
    space = Space(("a",), (some,), (10,), (1,), costs=costs)

    def to(now: int, direction: int) -> list[tuple[str, float]]:
        return [(str(some[at]), cost) for at, cost in space.steps[0][now, direction]]

    assert to(0, UP) == [("5", 10)]
    assert to(1, UP) == [("6", 1)]
    assert to(3, UP) == [("apot5", 1)]
    assert to(3, DOWN) == [("5", -1)]
    assert to(2, UP) == [("apot6", 8)]
    # The next by cost is of the other codebook, so there is a step to the next of the same too.
    assert to(4, DOWN) == [("apot5", -8)]
    assert to(2, DOWN) == [("6", -1)]


def test_a_layer_that_costs_nothing_still_has_steps_by_its_bits() -> None:
    space = within(Space(("a", "b"), TWO, (10, 10), (0, 1)), Budget(bit_ops=5))
    assert space.steps[0][1, UP] == ((2, 0.0),)
    assert (space.cheapest, space.dearest) == ((0, 0), (3, 3))


# Costs.


@st.composite
def priced(draw: st.DrawFn) -> Space:
    """A space of up to 4 layers with up to 4 actions each, of any costs, and any limit."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    costs = np.full((len(counts), max(counts)), np.nan)
    for layer, count in enumerate(counts):
        costs[layer, :count] = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    ones = (1,) * len(counts)
    names = tuple(f"layer{i}" for i in range(len(counts)))
    options = tuple(actions(2, 3, 4, 5)[:count] for count in counts)
    limit = draw(st.integers(0, 40) | st.just(math.inf))
    return Space(names, options, ones, ones, costs=costs, limit=float(limit))


@given(priced())
@settings(max_examples=60, deadline=None)
def test_costs_and_limits_are_those_of_brute_force(space: Space) -> None:
    every = list(itertools.product(*(range(len(own)) for own in space.actions)))
    sums = {choice: sum(map(float, space.costs[range(len(choice)), choice])) for choice in every}
    for choice, total in sums.items():
        assert space.cost(choice) == total
        assert space.fits(choice) == (total <= space.limit)
        assert space.room(choice) == pytest.approx(space.limit - total, abs=1e-9)
    assert sums[space.cheapest] == min(sums.values())
    assert sums[space.dearest] == max(sums.values())


def test_a_space_without_budget_costs_nominal_bits_and_allows_everything() -> None:
    space = Space(("a", "b"), (actions(2, 3), actions(5)), (97, 5), (1000, 1))
    assert np.array_equal(space.costs, np.array([[194, 291], [25, np.nan]]), equal_nan=True)
    assert space.limit == math.inf
    assert space.fits(space.dearest)


def test_a_plan_of_a_choice_knows_what_it_costs() -> None:
    plan = Space(("a", "b"), TWO, (97, 5), (1000, 1)).plan((1, 3))
    cost = plan.cost()
    assert dict(plan) == {"a": 3, "b": 5}
    assert (cost.bytes, cost.bit_ops) == (math.ceil((291 + 25) / 8), 3005)
    assert cost.average_bits == pytest.approx(316 / 102)


def test_a_plan_has_the_bits_of_inputs_that_are_quantized() -> None:
    options = (
        (Action(Width(2), FLOAT), Action(Width(3), FLOAT)),
        (Action(Width(3), 4), Action(Width(3), 8)),
    )
    plan = within(Space(("a", "b"), options, (97, 5), (1000, 1)), Budget(bit_ops=10**9)).plan(
        (1, 1)
    )
    assert plan == {"a": 3, "b": 3}
    assert plan.activations == {"b": 8}


# Options.


def test_options_are_ascending_and_pins_have_one() -> None:
    three = (Width(2), Width(3), Width(5))
    assert layer_widths(("a", "b"), (5, 2, 3, 2), {"b": 8}) == (three, (Width(8),))
    of_all = layer_widths(("a", "b"), (5, 2), {"b": 8, "*": "fp4"})
    assert of_all == ((read_width("fp4"),), (Width(8),))
    mixed = layer_widths(("a", "b"), [Apot(5), 4, 5, 3, "apot5", 6], {})
    assert mixed == ((Width(3), Width(4), Width(5), Apot(5), Width(6)),) * 2


@pytest.mark.parametrize(
    ("options", "pins", "message"),
    [
        ((), {}, "options: expected at least one"),
        ((1, 2), {}, "options: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 1"),
        ((2, 9), {}, "got 9"),
        ((2, 3.0), {}, r"got 3\.0"),
        ((2, True), {}, "got True"),
        ((2,), {"a": 1}, "got 1"),
        ((2,), {"frist": 3}, "^'frist' matches no layer that is searched .*'first'"),
        ((2,), {"b*": 3}, r"^'b\*' matches no layer that is searched"),
    ],
)
def test_options_that_are_none_are_refused(options: Any, pins: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        layer_widths(("first", "a"), options, pins)
