"""The rate is found at which a file meets its budget within 1 %, or the least bytes are said."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from octavo.errors import BudgetError
from octavo.plan import Budget, Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.file_budget import check_file_budget, within
from octavo.storage.packed import Packed


class Sized(Packed):
    """A network whose file has given bytes."""

    size = 0

    @property
    def file_bytes(self) -> int:
        return self.size

    @property
    def float_bytes(self) -> int:
        return 1_000_000


def solver(of_rate: Callable[[float], float], asked: list[float]) -> Callable[[float], Packed]:
    def solve(rate: float) -> Packed:
        asked.append(rate)
        packed = Sized({}, [])
        object.__setattr__(packed, "size", round(of_rate(rate)))
        return packed

    return solve


@pytest.mark.parametrize("limit", [95_000, 60_000, 30_000, 12_345])
@pytest.mark.parametrize(
    "of_rate",
    [
        lambda rate: 100_000 / (1 + rate) ** 0.4,
        lambda rate: 10_000 + 90_000 / (1 + 3 * rate),
        lambda rate: 5_000 + 95_000 * 0.9 ** (rate**0.5),
    ],
)
def test_the_file_is_as_large_as_the_budget_allows(
    of_rate: Callable[[float], float], limit: int
) -> None:
    asked: list[float] = []
    packed = within(Budget(bytes=limit), solver(of_rate, asked))
    assert 0.99 * limit <= packed.file_bytes <= limit
    assert len(asked) <= 12
    assert packed.file_bytes == round(of_rate(min(r for r in asked if of_rate(r) <= limit)))


def test_a_budget_that_the_file_meets_without_a_rate_needs_one_network() -> None:
    asked: list[float] = []
    assert within(Budget(bytes=100_000), solver(lambda _: 100_000, asked)).file_bytes == 100_000
    assert asked == [0]


def test_a_ratio_is_a_limit_too() -> None:
    packed = within(Budget(ratio=20), solver(lambda rate: 100_000 / (1 + rate), []))
    assert 0.99 * 50_000 <= packed.file_bytes <= 50_000


@pytest.mark.parametrize(
    ("of_rate", "least", "rate"),
    [
        (lambda rate: max(40_000, 90_000 - 100 * rate), 40_000, "1024"),
        (lambda rate: 42_000 + rate, 42_000, "0"),
        (lambda rate: 50_000 - 9_000 * (rate == 4) + rate, 41_004, "4"),
    ],
)
def test_what_no_rate_meets_is_refused_with_the_least_bytes_of_all_that_were_made(
    of_rate: Callable[[float], float], least: int, rate: str
) -> None:
    message = rf"at least {least} bytes, .* \(rate {rate} does\), got 30000; give layers"
    with pytest.raises(BudgetError, match=message):
        within(Budget(bytes=30_000), solver(of_rate, []))


def test_steps_in_the_file_leave_the_largest_that_fits() -> None:
    packed = within(Budget(bytes=70_000), solver(lambda rate: 80_000 - 20_000 * (rate > 3), []))
    assert packed.file_bytes == 60_000


def test_other_budgets_and_a_rate_beside_one_are_refused() -> None:
    with pytest.raises(BudgetError, match="expected bytes or ratio, a limit on the file, got ave"):
        check_file_budget(Budget(average_bits=3), 0.0)
    with pytest.raises(BudgetError, match="expected no rate beside it, got rate=1"):
        check_file_budget(Budget(bytes=3), 1.0)


def test_a_network_within_its_budget() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(48, 48), nn.ReLU()) for _ in range(6)]
    model = nn.Sequential(*layers)
    inputs = [torch.randn(96, 48)]
    plan = Plan.uniform(model, "apot5")
    plain = calibrate(model, plan, inputs, floats="folded").file_bytes
    limit = int(0.7 * plain)
    packed = calibrate(model, plan, inputs, budget=Budget(bytes=limit))
    assert 0.98 * limit <= packed.file_bytes <= limit  # so small a network makes larger steps
    with pytest.raises(BudgetError, match="budget: expected at least"):
        calibrate(model, plan, inputs, budget=Budget(bytes=500))
