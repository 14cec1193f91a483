"""The uniform choice: the dearest that the budget allows, pins and inputs in float kept."""

import numpy as np
import pytest
from tests.dnq.environments import Formula

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals.uniform import uniform, uniform_choice
from octavo.dnq.space import Action, Choice, Space
from octavo.plan import Budget

ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))
NAMES = ("a", "b", "c")


def space_of(budget: Budget | None, pins: dict[int, int] | None = None) -> Space:
    pinned = {at: (Action.parse(bits),) for at, bits in (pins or {}).items()}
    options = tuple(pinned.get(at, ACTIONS) for at in range(3))
    return within(Space(NAMES, options, (100, 37, 260), (9, 400, 31)), budget)


def texts(space: Space, choice: Choice) -> list[str]:
    return [str(action) for action in space.chosen(choice)]


@pytest.mark.parametrize(
    ("budget", "pins", "expected"),
    [
        (Budget(average_bits=3.99), {}, "333"),
        (Budget(average_bits=4), {}, "444"),
        (Budget(average_bits=8), {}, "555"),
        (Budget(average_bits=2), {}, "222"),
        (Budget(average_bits=4), {1: 8}, "383"),  # pins count
        (Budget(average_bits=4), {1: 2}, "424"),
        (None, {1: 2}, "525"),
    ],
)
def test_uniform_is_the_most_that_the_budget_allows(
    budget: Budget | None, pins: dict[int, int], expected: str
) -> None:
    space = space_of(budget, pins)
    choice = uniform_choice(space)
    assert texts(space, choice) == list(expected)
    environment = Formula(lambda _: 0.0)
    uniform(Evaluator(space, environment, Journal(None, space.actions, {}), 100))
    assert environment.asked == [choice]  # and nothing else is measured


def test_under_a_budget_of_the_file_it_is_the_dearest_in_bytes() -> None:
    """The file takes less for 5 bits than for 4, where the codes of 5 are more of the same."""
    codes = np.outer([10, 4, 26], [2.0, 3.0, 5.0, 4.5])
    free = Space(NAMES, (ACTIONS,) * 3, (100, 37, 260), (9, 400, 31))
    for most, expected in ((280, "4"), (279, "5"), (259, "3"), (199, "2")):
        space = within(free, Budget(bytes=most), FileSizes(codes, 80.0, 10**4))
        assert texts(space, uniform_choice(space)) == [expected] * 3


def test_without_a_budget_the_uniform_choice_costs_no_more_than_another() -> None:
    space = space_of(None)
    assert uniform_choice(space, (2, 2, 2)) == (2, 2, 2)
    assert uniform_choice(space, (3, 3, 1)) == (1, 1, 1)
    assert uniform_choice(space, (0, 0, 0)) == (0, 0, 0)


def test_of_two_codebooks_at_as_many_bits_it_is_the_sums() -> None:
    options = (tuple(map(Action.parse, (4, 5, "apot5", "apot6"))),) * 3
    space = within(Space(NAMES, options, (9, 9, 9), (1, 1, 1)), Budget(average_bits=5.2))
    assert texts(space, uniform_choice(space)) == ["apot5"] * 3


def test_it_keeps_pins_and_inputs_in_float() -> None:
    rows = (("5x4", "5x8"), ("2x32", "3x32"), ("2x4", "3x4", "2x8", "3x8"))
    options = tuple(tuple(map(Action.parse, row)) for row in rows)
    limit = 10 * (40 + 96 + 24)
    space = within(Space(NAMES, options, (9, 9, 9), (10, 10, 10)), Budget(bit_ops=limit))
    assert texts(space, uniform_choice(space)) == ["5x8", "3x32", "3x8"]
    space = within(Space(NAMES, options, (9, 9, 9), (10, 10, 10)), Budget(bit_ops=limit - 1))
    assert texts(space, uniform_choice(space)) == ["5x4", "3x32", "3x4"]
