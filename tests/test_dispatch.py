"""The limits on what a GPU would launch and wait for, counted on a CPU."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = runpy.run_path(str(BENCHMARKS / "dispatch.py"))
RESULT = json.loads((BENCHMARKS / "results" / "dispatch.json").read_text())["rows"]
OVER_PLAIN = {"half frozen": 3, "straight through": 8}  # operations, a layer and step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, groups=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        return out


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "limit"), OVER_PLAIN.items())
def test_the_parametrization_takes_few_operations_and_no_synchronisation(
    name: str, limit: int
) -> None:
    for rows in (
        SCRIPT["parametrization"](Net(), images()),
        RESULT["parametrization, a layer and step"],
    ):
        assert 0 < rows[name]["operations"] <= limit
        assert rows[name]["synchronisations"] == 0


def test_the_training_loop_waits_twice_in_twenty_steps() -> None:
    row = SCRIPT["loop"](Net(), images())
    assert row["synchronisations"] == 2 / 20  # it reads the losses, and the norms
    assert RESULT["training loop, a step"]["synchronisations"] == 2 / 20


@pytest.mark.parametrize(("name", "limit"), [("project", 9), ("encode", 10)])
def test_rounding_takes_as_many_operations_whatever_the_size(name: str, limit: int) -> None:
    counts = [SCRIPT["rounding"](weights)[name] for weights in (1 << 12, 1 << 22, 1 << 28)]
    assert len(set(counts)) == 1
    assert counts[0] <= limit
    assert RESULT["rounding of 4 M weights"] == RESULT["rounding of 268 M weights"]


@pytest.mark.parametrize(
    ("work", "synchronisations"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu"), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.to(x.device), 0),
        (lambda x: torch.where(x > 0, x, 0.0), 0),
    ],
)
def test_a_synchronisation_is_counted(work: Any, synchronisations: int) -> None:
    assert SCRIPT["counted"](lambda: work(torch.ones(3))).synchronisations == synchronisations


def test_views_and_allocations_are_no_operations() -> None:
    def work() -> None:
        x = torch.empty(4, 3)
        (x.t().reshape(2, 6)[0] + 1).detach().view(3, 2).mul_(2)

    assert dict(SCRIPT["counted"](work).by_name) == {"clone": 1, "add": 1, "mul_": 1}
