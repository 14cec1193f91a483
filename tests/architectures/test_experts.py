"""A mixture of experts: few of them are called by any one row, and some by no row at all."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octavo.ptq.freezer
from octavo import Budget, Plan, calibrate, search
from octavo.dnq import candidates
from octavo.errors import PlanError

EXPERTS = 6


class Mixture(nn.Module):
    """Each row goes to one expert, by the largest of its first features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(EXPERTS))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, :EXPERTS].argmax(1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mixed[chosen == number] = expert(x[chosen == number])  # also with no row at all
        return self.head(F.relu(mixed))  # type: ignore[no-any-return]


def rows(expert: int, count: int) -> Tensor:
    """Rows that go to one expert."""
    generator = torch.Generator().manual_seed(expert)
    return torch.randn(count, 8, generator=generator) + 9 * torch.eye(8)[expert]


def test_reach_is_decided_by_all_inputs_and_not_by_the_first_row() -> None:
    model = Mixture()
    batches = [rows(expert, 32) for expert in range(EXPERTS)]
    result = search(model, batches, budget=Budget(average_bits=3), options=(2, 4), trials=40)
    assert set(result.plan) == {"head", *(f"experts.{number}" for number in range(EXPERTS))}
    assert result.plan.macs["experts.5"] == 64
    assert calibrate(model, result.plan, batches).nominal_bits <= 3


def test_an_expert_that_only_a_held_out_row_reaches_is_calibrated_from_it() -> None:
    """The last row of every four decides among finalists, and one such row has the last expert."""
    batches = [rows(expert, 64) for expert in range(EXPERTS - 1)]
    batches[0][3] = rows(EXPERTS - 1, 1)
    result = search(Mixture(), batches, budget=Budget(average_bits=3), options=(2, 4), trials=40)
    assert f"experts.{EXPERTS - 1}" in result.plan


@pytest.mark.parametrize("sequential", [True, False])
def test_ptq_solves_an_expert_from_what_was_set_aside_if_nothing_else_reaches_it(
    sequential: bool,
) -> None:
    """Every eighth row is set aside, and one such row has the last expert."""
    batches = [rows(expert, 64) for expert in range(EXPERTS - 1)]
    batches[0][7] = rows(EXPERTS - 1, 1)
    model = Mixture()
    packed = calibrate(model, Plan.uniform(model, 4), batches, sequential=sequential)
    last = packed.layers[f"experts.{EXPERTS - 1}"].weight()
    weight = model.get_parameter(f"experts.{EXPERTS - 1}.weight").detach()
    assert 0 < float((last - weight).norm() / weight.norm()) < 0.5
    assert packed.held_out is not None
    assert packed.held_out.samples == 40


def test_a_search_names_what_it_leaves_in_float() -> None:
    batches = [rows(expert, 32) for expert in range(EXPERTS - 2)]
    left_out = r"^experts.4, experts.5: no input reaches them, so the search leaves them in float"
    with pytest.warns(UserWarning, match=left_out):
        result = search(Mixture(), batches, budget=Budget(average_bits=3), options=(2,), trials=40)
    assert len(result.plan) == EXPERTS - 1


def test_what_is_not_reached_is_named_at_once_and_before_anything_is_solved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def solved(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(octavo.ptq.freezer, "solve", solved)
    model = Mixture()
    message = r"^experts.1, experts.3, experts.4, experts.5: no calibration input reaches these"
    inputs = [rows(0, 8), rows(2, 8)]
    for sequential in (True, False):
        with pytest.raises(PlanError, match=message):
            calibrate(model, Plan.uniform(model, 3), inputs, sequential=sequential)


def test_too_few_trials_are_noticed_before_anything_is_solved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def solved(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(candidates, "solve", solved)
    batches = [rows(expert, 32) for expert in range(EXPERTS)]
    with pytest.raises(PlanError, match="trials: expected at least 30"):
        search(Mixture(), batches, trials=20, refine=0)
