"""Prices: a budget as costs of actions and a limit, against brute force and by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.prices import check_budget, within
from octavo.dnq.space import Action, Choice, Space
from octavo.errors import BudgetError
from octavo.plan import Budget

ACTIONS = tuple(map(Action.parse, (2, 3, 4, 5)))
SPACE = Space(("a", "b"), (ACTIONS,) * 2, (97, 5), (1000, 1))
# Codes of 20 to 60 and of 1 to 4 bytes, and 100 bytes of everything else.
SIZES = FileSizes(np.array([[20.0, 30, 45, 60], [1, 2, 3, 4]]), 100.0, 500)


def every(space: Space) -> list[Choice]:
    return list(itertools.product(*(range(len(own)) for own in space.actions)))


def file_bytes(choice: Choice) -> float:
    return SIZES.rest + sum(float(SIZES.codes[place]) for place in enumerate(choice))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_nominal_budget_allows_exactly_the_plans_of_that_cost(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 3))
    counts = st.lists(st.integers(1, 10**6), min_size=layers, max_size=layers)
    options = (ACTIONS,) * layers
    weights = tuple(data.draw(counts))
    macs = tuple(data.draw(counts))
    space = Space(tuple("abc"[:layers]), options, weights, macs)
    kind = data.draw(st.sampled_from(["average_bits", "bit_ops"]))
    at = data.draw(st.sampled_from(every(space)))
    most = getattr(space.plan(at).cost(), kind)
    priced = within(space, Budget(**{kind: most}))
    for choice in every(space):
        assert priced.fits(choice) == (getattr(space.plan(choice).cost(), kind) <= most)


@pytest.mark.parametrize("most", [121, 134, 147.5, 164, 1000])
def test_a_budget_of_bytes_bounds_the_whole_file(most: float) -> None:
    space = within(SPACE, Budget(bytes=int(most)), SIZES)
    for choice in every(SPACE):
        assert space.fits(choice) == (file_bytes(choice) <= int(most))
        assert space.room(choice) == pytest.approx(int(most) - file_bytes(choice), abs=1e-9)


@pytest.mark.parametrize("ratio", [1, 3.05, 3.5, 4.1])
def test_a_budget_of_ratio_is_that_of_the_file_and_counts_all_tensors(ratio: float) -> None:
    space = within(SPACE, Budget(ratio=ratio), SIZES)
    for choice in every(SPACE):
        assert space.fits(choice) == (500 / file_bytes(choice) >= ratio)


def test_without_a_budget_everything_fits_and_costs_are_bytes_where_these_are_known() -> None:
    free = within(SPACE, None, SIZES)
    assert free.cost((1, 2)) == 33
    assert free.fits(free.dearest)
    assert within(SPACE, None).cost((1, 2)) == 3 * 97 + 4 * 5


def test_a_budget_near_the_smallest_file_is_not_refused_for_what_is_estimated() -> None:
    """The estimate of the cheapest file is 121 bytes, but 112 were packed."""
    sizes = replace(SIZES, least=112)
    for most in (111, 112, 120):
        space = within(SPACE, Budget(bytes=most), sizes)
        assert [choice for choice in every(SPACE) if space.fits(choice)] == [(0, 0)]
    with pytest.raises(BudgetError, match="a file of about 112 to 164 bytes"):
        within(SPACE, Budget(bytes=110), sizes)


def test_another_budget_takes_the_place_of_the_first() -> None:
    once = within(SPACE, Budget(bytes=130), SIZES)
    again = within(once, Budget(average_bits=2.5))
    assert (again.limit, again.cost((0, 1))) == (255, 2 * 97 + 3 * 5)
    assert again.steps[0][0, 1] == ((1, 97.0),)


FEASIBLE = (
    "no plan within the options costs so little; feasible: 2 to 5 average bits, "
    "a file of about 121 to 164 bytes, a ratio of about 3.05 to 4.13, "
    "2,002 to 5,005 bit operations"
)


@pytest.mark.parametrize(
    "budget",
    [Budget(average_bits=1.9), Budget(ratio=4.2), Budget(bytes=120), Budget(bit_ops=2001)],
)
def test_a_budget_that_nothing_meets_says_what_is_feasible(budget: Budget) -> None:
    with pytest.raises(BudgetError) as error:
        within(SPACE, budget, SIZES)
    assert str(error.value) == f"{budget}: {FEASIBLE}"


def test_before_sizes_are_known_only_nominal_budgets_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"feasible: 2 to 5 average bits, 2,002 to 5,005 bit op"):
        check_budget(SPACE, Budget(average_bits=1.9))
    with pytest.raises(BudgetError, match=r"^bit_ops=2001: "):
        check_budget(SPACE, Budget(bit_ops=2001))
    for budget in (None, Budget(average_bits=2), Budget(bytes=1), Budget(ratio=1e9)):
        check_budget(SPACE, budget)


def test_a_budget_of_the_file_needs_its_sizes() -> None:
    for budget in (Budget(bytes=1000), Budget(ratio=1)):
        with pytest.raises(BudgetError, match=r": expected the sizes of the packed file"):
            within(SPACE, budget)


def test_bits_of_inputs_need_a_budget_that_counts_them() -> None:
    space = Space(("a",), (tuple(map(Action.parse, ("2x4", "2x8"))),), (97,), (10,))
    message = "^activations: expected a budget of bit_ops, which counts them, got "
    for budget in (None, Budget(average_bits=3), Budget(bytes=99)):
        with pytest.raises(BudgetError, match=message + (str(budget) if budget else "none")):
            check_budget(space, budget)
    priced = within(space, Budget(bit_ops=100))
    assert [priced.fits((action,)) for action in (0, 1)] == [True, False]
