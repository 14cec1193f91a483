"""The reward of a plan."""

import pytest

from octavo.dnq.reward import reward_of
from octavo.plan import Plan

FOUR_BITS = Plan({"a": 4}, weights={"a": 100})
TWO_BITS = Plan({"a": 2}, weights={"a": 100})


def test_under_a_budget_it_is_the_objective() -> None:
    assert reward_of(-0.25, TWO_BITS, 0.0) == -0.25


def test_a_doubled_ratio_is_worth_the_trade_off() -> None:
    assert reward_of(-0.25, FOUR_BITS, 0.5) == pytest.approx(-0.25 + 0.5 * 3)  # 8 times smaller
    gain = reward_of(-0.25, TWO_BITS, 0.5) - reward_of(-0.25, FOUR_BITS, 0.5)
    assert gain == pytest.approx(0.5)
