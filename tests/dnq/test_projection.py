"""The projection: budgets are kept and used up, whatever the losses say."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.dnq.projection import project
from octavo.dnq.space import Action, Choice, Space, layer_widths
from octavo.formats.width import WidthLike, read_width
from octavo.plan import Budget

BUDGETS = ("average_bits", "ratio", "bytes", "bit_ops")


def actions(*widths: WidthLike) -> tuple[Action, ...]:
    return tuple(Action(read_width(width)) for width in widths)


TWO = (actions(2, 3, 4, 5),) * 2


def spent(space: Space, choice: Choice, kind: str) -> Fraction:
    """What a choice costs, in the terms of a budget of this kind, in whole numbers."""
    widths = [action.width.bits for action in space.chosen(choice)]
    bits = sum(w * b for w, b in zip(space.weights, widths, strict=True))
    if kind == "bit_ops":
        return Fraction(sum(m * b for m, b in zip(space.macs, widths, strict=True)))
    if kind == "bytes":
        return Fraction(-(-bits // 8))
    total = sum(space.weights)
    return Fraction(bits, total) if kind == "average_bits" else Fraction(bits, 32 * total)


def exactly_allowed(budget: Budget, kind: str) -> Fraction:
    """What the budget allows, in the same terms."""
    most = Fraction(getattr(budget, kind))
    return 1 / most if kind == "ratio" else most


def allowed(budget: Budget, kind: str) -> Fraction:
    """As above, but that a billionth over is not over where the terms are no whole numbers."""
    slack = 1 if kind in ("bytes", "bit_ops") else 1 + Fraction(1, 10**9)
    return exactly_allowed(budget, kind) * slack


@st.composite
def problems(draw: st.DrawFn) -> tuple[Space, Choice, np.ndarray, str]:
    """A space with some pins and a budget that something meets, any choice in it, and losses that
    need not fall."""
    layers = draw(st.integers(1, 5))
    largest = draw(st.sampled_from([3, 1000, 10**7]))
    counts = st.lists(st.integers(1, largest), min_size=layers, max_size=layers)
    weights = tuple(draw(counts))
    macs = tuple(draw(counts))
    bits = st.lists(st.integers(2, 8), min_size=1, max_size=4, unique=True)
    options = tuple(actions(*sorted(draw(bits))) for _ in range(layers))
    names = tuple(f"layer{i}" for i in range(layers))
    free = Space(names, options, weights, macs)
    kind = draw(st.sampled_from(BUDGETS))
    least = spent(free, free.cheapest, kind)
    most = spent(free, free.dearest, kind)
    limit = least + (most - least) * Fraction(draw(st.integers(0, 12)), 10)
    value: Any = float(1 / limit if kind == "ratio" else limit)
    if kind in ("bytes", "bit_ops"):
        value = int(limit)
    space = Space(names, options, weights, macs, Budget(**{kind: value}))
    row = st.lists(st.integers(-2, 9), min_size=4, max_size=4)
    losses = np.array(draw(st.lists(row, min_size=layers, max_size=layers)), float)
    choice = tuple(draw(st.integers(0, len(some) - 1)) for some in options)
    return space, choice, losses, kind


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_projection_is_within_the_budget_and_of_the_actions(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, losses, kind = problem
    assert space.budget is not None
    for keep in [None, *range(len(choice))]:
        found = project(space, choice, losses, keep=keep)
        assert spent(space, found, kind) <= allowed(space.budget, kind)
        assert all(0 <= at < len(some) for at, some in zip(found, space.actions, strict=True))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_a_projection_leaves_no_step_that_fits_and_helps(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, losses, kind = problem
    assert space.budget is not None
    found = project(space, choice, losses)
    for layer, some in enumerate(space.actions):
        more = found[layer] + 1
        if more < len(some) and losses[layer, more] < losses[layer, found[layer]]:
            other = (*found[:layer], more, *found[layer + 1 :])
            assert spent(space, other, kind) > exactly_allowed(space.budget, kind)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_what_fits_and_cannot_be_bettered_is_left_alone(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, losses, _ = problem
    once = project(space, choice, losses)
    assert project(space, once, losses) == once


@settings(deadline=None, max_examples=40)
@given(problems())
def test_a_kept_layer_changes_only_where_the_others_cannot_make_room(
    problem: tuple[Space, Choice, np.ndarray, str],
) -> None:
    space, choice, losses, kind = problem
    assert space.budget is not None
    for keep in range(len(choice)):
        barest = tuple(choice[at] if at == keep else 0 for at in range(len(choice)))
        if spent(space, barest, kind) <= exactly_allowed(space.budget, kind):
            assert project(space, choice, losses, keep=keep)[keep] == choice[keep]


def widths(space: Space, choice: Choice) -> tuple[int, ...]:
    return tuple(action.width.bits for action in space.chosen(choice))


def test_layers_give_way_in_the_order_of_what_a_freed_bit_hurts() -> None:
    losses = np.array([[8.0, 4.0, 2.0, 1.5], [3.0, 2.0, 1.0, 0.0]])
    equal = Space(("a", "b"), TWO, (10, 10), (1, 1), Budget(average_bits=4))
    for start in ((3, 3), (0, 0)):  # a's last bit saves 0.5, each of b's 1; a's first two 4 and 2
        assert widths(equal, project(equal, start, losses)) == (4, 4)
    heavy = Space(("a", "b"), TWO, (10, 1000), (1, 1), Budget(bytes=507))
    # A bit of b frees a hundred times as much.
    assert widths(heavy, project(heavy, (3, 3), losses)) == (5, 4)
    light = Space(("a", "b"), TWO, (10, 1000), (1, 1), Budget(bit_ops=8))
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
    space = Space(("a", "b", "c"), some, (10, 10, 10), (1, 1, 1), Budget(average_bits=13 / 3))
    losses = np.array([[4.0, 3.0, 2.0, 1.0]] * 3)
    for a, c in itertools.product(range(4), repeat=2):
        found = widths(space, project(space, (a, 0, c), losses))
        assert found[1] == 8
        assert sum(found) == 13


@pytest.mark.parametrize(
    "budget", [Budget(average_bits=2), Budget(ratio=16), Budget(bytes=26), Budget(bit_ops=2002)]
)
def test_a_budget_that_only_the_cheapest_choice_meets_is_met(budget: Budget) -> None:
    space = Space(("a", "b"), TWO, (97, 5), (1000, 1), budget)
    cheapest = project(space, (3, 3), np.zeros((2, 4)))
    assert spent(space, cheapest, "bytes") == 26 or budget.bit_ops
    assert cheapest[0] == 0


def test_actions_of_one_factor_neither_stop_nor_repeat_the_steps() -> None:
    some = (actions(3, 4, 5, "apot5", 6),) * 2
    losses = np.outer([1, 2], [9.0, 5.0, 4.0, 1.0, 0.5])
    space = Space(("a", "b"), some, (10, 10), (1, 1), Budget(average_bits=5))
    assert project(space, (4, 4), losses) == (3, 3)  # apot5
    assert project(space, (0, 0), losses) == (3, 3)
    worse = losses.copy()
    worse[:, 3] = 4.5
    assert project(space, (4, 4), worse) in ((2, 2), (1, 4))
    for choice in ((3, 2), (2, 3)):  # within the budget already, and no further step fits
        assert project(space, choice, losses) == choice
    cheap = Space(("a", "b"), some, (10, 10), (1, 1), Budget(average_bits=3.5))
    assert cheap.price(project(cheap, (3, 3), losses)) == 70


def test_what_is_left_of_a_budget_is_filled_up_in_either_part() -> None:
    """Once the second layer has taken its share, only the lesser of the first one's steps up from
    2x4 fits."""
    texts = ("2x4", "3x4", "2x8", "3x8")
    space = Space(
        ("a", "b"), (tuple(map(Action.parse, texts)),) * 2, (9, 9), (10, 1), Budget(bit_ops=172)
    )
    losses = np.array([[20 - 2 * a - 0.1 * w for w, a in ((2, 4), (3, 4), (2, 8), (3, 8))]] * 2)
    for start in ((0, 0), (3, 3)):
        found = project(space, start, losses)
        assert [texts[action] for action in found] == ["3x4", "3x8"]
