"""The default objective against sums by hand; what it is for every form of output is tested with
the environment."""

import math

import pytest
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.divergence import TEMPERATURE, Divergence, first_rows, outputs_of


class Twice(nn.Module):
    """Returns logits and a value; they are scaled by one parameter."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.scale * x, "value": self.scale * x[:, 0]}


BATCHES = [torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[2.0, 2.0]])]


def kl(row: list[float], other: list[float]) -> float:
    p = (torch.tensor(row).double() / TEMPERATURE).softmax(0)
    q = (torch.tensor(other).double() / TEMPERATURE).softmax(0)
    return TEMPERATURE**2 * float((p * (p / q).log()).sum())


@torch.no_grad()
def test_parts_are_summed_each_in_its_own_unit_over_all_batches() -> None:
    divergence = Divergence(Twice(), BATCHES)
    rows = [[1.0, 2.0], [0.0, 3.0], [2.0, 2.0]]
    expected = -sum(kl(row, [2 * value for value in row]) for row in rows) / 3
    expected -= sum(row[0] ** 2 for row in rows) / sum(row[0] ** 2 for row in rows)
    found = divergence.objective(outputs_of(Twice(2.0), BATCHES))
    assert math.isclose(found, expected, rel_tol=1e-6)
    assert divergence.objective(outputs_of(Twice(), BATCHES)) == 0.0
    assert divergence.width == 3


@torch.no_grad()
def test_the_first_rows_go_over_batches() -> None:
    divergence = Divergence(Twice(), BATCHES)
    logits, value = divergence.first_parts(3)
    assert (logits.name, logits.classes, value.name, value.classes) == (
        "logits", True, "value", False
    )  # fmt: skip
    assert value.rows.tolist() == [[1.0], [0.0], [2.0]]
    assert [len(rows) for rows in first_rows(outputs_of(Twice(), BATCHES), 2)] == [2, 2]


@torch.no_grad()
def test_outputs_of_another_form_are_refused() -> None:
    divergence = Divergence(Twice(), BATCHES)
    fewer = outputs_of(Twice(), [BATCHES[0], BATCHES[0]])
    with pytest.raises(PlanError, match="expected outputs of the same form whatever the weights"):
        divergence.objective(fewer)


@torch.no_grad()
def test_at_temperature_1_it_is_the_plain_kl_divergence() -> None:
    p, q = (scale * torch.cat(BATCHES).double() for scale in (1, 2))
    expected = nn.functional.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True,
                                    reduction="batchmean")  # fmt: skip
    model, network = nn.Identity(), nn.Sequential(nn.Linear(2, 2, bias=False))
    network.get_parameter("0.weight").copy_(2 * torch.eye(2))
    found = -Divergence(model, BATCHES, temperature=1.0).of(network)
    assert found == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_a_constant_loses_all_that_outputs_say_about_inputs() -> None:
    """For logits the mutual information of input and class, for a value its variance."""
    p = torch.cat(BATCHES).double().softmax(1)
    information = (p * (p / p.mean(0)).log()).sum(1).mean()
    value = torch.cat(BATCHES)[:, 0].double()
    variance = (value - value.mean()).square().sum() / value.square().sum()
    found = Divergence(Twice(), BATCHES, temperature=1.0).of_constant
    assert found == pytest.approx(float(information + variance), rel=1e-5)
    same = Divergence(Twice(), [BATCHES[1], BATCHES[1]], temperature=1.0)
    assert same.of_constant == pytest.approx(0, abs=1e-9)
