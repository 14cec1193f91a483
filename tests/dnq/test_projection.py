"""The projection: budgets are kept and used up, whatever the losses say."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.dnq.prices import within
from octavo.dnq.projection import project
from octavo.dnq.space import Action, Choice, Space, layer_widths
from octavo.formats.width import WidthLike, read_width
from octavo.plan import Budget


def actions(*widths: WidthLike) -> tuple[Action, ...]:
    return tuple(Action(read_width(width)) for width in widths)


TWO = (actions(2, 3, 4, 5),) * 2


def spent(space: Space, choice: Choice) -> Fraction:
    """What a choice costs, in whole numbers."""
    return sum((Fraction(space.costs[place]) for place in enumerate(choice)), Fraction())


def allowed(space: Space) -> Fraction:
    """What the budget allows; a billionth over is not over."""
    return Fraction(space.limit) * (1 + Fraction(1, 10**9))


def drawn_costs(draw: st.DrawFn, space: Space) -> np.ndarray:
    """Costs as a file has them: any numbers, which need not rise with the bits."""
    columns = space.costs.shape[1]
    row = st.lists(st.floats(0, 1e5), min_size=columns, max_size=columns)
    costs = np.array(draw(st.lists(row, min_size=len(space.names), max_size=len(space.names))))
    costs[np.isnan(space.costs)] = np.nan
    return costs


@st.composite
def problems(draw: st.DrawFn) -> tuple[Space, Choice, np.ndarray]:
    """A space with some pins and a limit that something meets, any choice in it, and losses that
    need not fall."""
    layers = draw(st.integers(1, 5))
    largest = draw(st.sampled_from([3, 1000, 10**7]))
    counts = st.lists(st.integers(1, largest), min_size=layers, max_size=layers)
    weights = tuple(draw(counts))
    bits = st.lists(st.integers(2, 8), min_size=1, max_size=4, unique=True)
    options = tuple(actions(*sorted(draw(bits))) for _ in range(layers))
    space = Space(tuple(f"layer{i}" for i in range(layers)), options, weights, weights)
    if draw(st.booleans()):
        space = replace(space, costs=drawn_costs(draw, space))
    least = spent(space, space.cheapest)
    most = spent(space, space.dearest)
    limit = least + (most - least) * Fraction(draw(st.integers(0, 12)), 10)
    space = replace(space, limit=float(limit))
    row = st.lists(st.integers(-2, 9), min_size=4, max_size=4)
    losses = np.array(draw(st.lists(row, min_size=layers, max_size=layers)), float)
    choice = tuple(draw(st.integers(0, len(some) - 1)) for some in options)
    return space, choice, losses


Problem = tuple[Space, Choice, np.ndarray]


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_projection_is_within_the_budget_and_of_the_actions(problem: Problem) -> None:
    space, choice, losses = problem
    for keep in [None, *range(len(choice))]:
        found = project(space, choice, losses, keep=keep)
        assert spent(space, found) <= allowed(space)
        assert all(0 <= at < len(some) for at, some in zip(found, space.actions, strict=True))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_projection_leaves_no_step_to_the_next_cost_that_fits_and_helps(
    problem: Problem,
) -> None:
    space, choice, losses = problem
    found = project(space, choice, losses)
    for layer, some in enumerate(space.actions):
        by_cost = sorted(range(len(some)), key=lambda at: (space.costs[layer, at], at))
        for more in by_cost[by_cost.index(found[layer]) + 1 :][:1]:
            if losses[layer, more] < losses[layer, found[layer]]:
                other = (*found[:layer], more, *found[layer + 1 :])
                assert spent(space, other) > Fraction(space.limit)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_what_fits_and_cannot_be_bettered_is_left_alone(problem: Problem) -> None:
    space, choice, losses = problem
    once = project(space, choice, losses)
    assert project(space, once, losses) == once


@settings(deadline=None, max_examples=40)
@given(problems())
def test_a_kept_layer_changes_only_where_the_others_cannot_make_room(problem: Problem) -> None:
    space, choice, losses = problem
    for keep in range(len(choice)):
        barest = (*space.cheapest[:keep], choice[keep], *space.cheapest[keep + 1 :])
        if spent(space, barest) <= Fraction(space.limit):
            assert project(space, choice, losses, keep=keep)[keep] == choice[keep]


def widths(space: Space, choice: Choice) -> tuple[int, ...]:
    return tuple(action.width.bits for action in space.chosen(choice))


def test_layers_give_way_in_the_order_of_what_a_freed_bit_hurts() -> None:
    losses = np.array([[8.0, 4.0, 2.0, 1.5], [3.0, 2.0, 1.0, 0.0]])
    equal = within(Space(("a", "b"), TWO, (10, 10), (1, 1)), Budget(average_bits=4))
    for start in ((3, 3), (0, 0)):  # a's last bit saves 0.5, each of b's 1; a's first two 4 and 2
        assert widths(equal, project(equal, start, losses)) == (4, 4)
    heavy = within(Space(("a", "b"), TWO, (10, 1000), (1, 1)), Budget(average_bits=507 * 8 / 1010))
    # A bit of b frees a hundred times as much.
    assert widths(heavy, project(heavy, (3, 3), losses)) == (5, 4)
    light = within(Space(("a", "b"), TWO, (10, 1000), (1, 1)), Budget(bit_ops=8))
    # Bit operations do not count weights.
    assert widths(light, project(light, (3, 3), losses)) == (4, 4)


def test_without_a_budget_a_projection_changes_nothing() -> None:
    space = Space(("a", "b"), TWO, (10, 10), (1, 1))
    losses = np.array([[4.0, 3.0, 2.0, 1.0]] * 2)
    for choice in itertools.product(range(4), repeat=2):
        assert project(space, choice, losses) == choice


def test_pins_are_kept_whatever_they_cost() -> None:
    options = layer_widths(("a", "b", "c"), (2, 3, 4, 5), {"b": 8})
    some = tuple(actions(*own) for own in options)
    space = within(
        Space(("a", "b", "c"), some, (10, 10, 10), (1, 1, 1)), Budget(average_bits=13 / 3)
    )
    losses = np.array([[4.0, 3.0, 2.0, 1.0]] * 3)
    for a, c in itertools.product(range(4), repeat=2):
        found = widths(space, project(space, (a, 0, c), losses))
        assert found[1] == 8
        assert sum(found) == 13


@pytest.mark.parametrize("budget", [Budget(average_bits=2), Budget(bit_ops=2002)])
def test_a_budget_that_only_the_cheapest_choice_meets_is_met(budget: Budget) -> None:
    space = within(Space(("a", "b"), TWO, (97, 5), (1000, 1)), budget)
    cheapest = project(space, (3, 3), np.zeros((2, 4)))
    assert cheapest == (0, 0)


def test_actions_of_one_factor_neither_stop_nor_repeat_the_steps() -> None:
    some = (actions(3, 4, 5, "apot5", 6),) * 2
    losses = np.outer([1, 2], [9.0, 5.0, 4.0, 1.0, 0.5])
    space = within(Space(("a", "b"), some, (10, 10), (1, 1)), Budget(average_bits=5))
    assert project(space, (4, 4), losses) == (3, 3)  # apot5
    assert project(space, (0, 0), losses) == (3, 3)
    worse = losses.copy()
    worse[:, 3] = 4.5
    assert project(space, (4, 4), worse) in ((2, 2), (1, 4))
    for choice in ((3, 2), (2, 3)):  # within the budget already, and no further step fits
        assert project(space, choice, losses) == choice
    cheap = within(Space(("a", "b"), some, (10, 10), (1, 1)), Budget(average_bits=3.5))
    assert cheap.cost(project(cheap, (3, 3), losses)) == 70


def test_what_is_left_of_a_budget_is_filled_up_in_either_part() -> None:
    """Once the second layer has taken its share, only the lesser of the first one's steps up from
    2x4 fits."""
    texts = ("2x4", "3x4", "2x8", "3x8")
    space = within(
        Space(("a", "b"), (tuple(map(Action.parse, texts)),) * 2, (9, 9), (10, 1)),
        Budget(bit_ops=172),
    )
    losses = np.array([[20 - 2 * a - 0.1 * w for w, a in ((2, 4), (3, 4), (2, 8), (3, 8))]] * 2)
    for start in ((0, 0), (3, 3)):
        found = project(space, start, losses)
        assert [texts[action] for action in found] == ["3x4", "3x8"]


def test_of_two_codebooks_of_other_cost_a_worse_one_does_not_end_the_walk() -> None:
    """In a file, apot5 takes more bytes than 5 bits: where it is worse, the walk goes on to 6."""
    some = actions(4, 5, "apot5", 6)
    costs = np.array([[40.0, 50.0, 51.0, 60.0]])
    space = Space(("a",), (some,), (10,), (1,), costs=costs, limit=60)
    losses = np.array([[4.0, 3.0, 3.5, 1.0]])
    assert project(space, (0,), losses) == (3,)
    assert project(replace(space, limit=59), (3,), losses) == (1,)
