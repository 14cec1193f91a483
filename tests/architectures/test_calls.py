"""Networks whose call depends on its inputs, computes gradients, keeps a graph, was patched, or
runs in several types; and inputs that no float32 holds the squares of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures.journey import correlated, off, rounded, travel, travel_well
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Incremental, OctavoError, Plan, PlanError, calibrate, search
from octavo.network.copies import copied
from octavo.network.module_state import same

WIDTH = 16


class Routed(nn.Module):
    """A mixture of experts, which most rows do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(1)
        chosen = share.argmax(1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            mixed = mixed.index_add(0, rows, expert(x[rows]) * share[rows, number : number + 1])
        return self.head(mixed.relu())  # type: ignore[no-any-return]


class Exiting(nn.Module):
    """It leaves early where all rows are small."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        if float(x.abs().max()) > 1:
            hidden = self.second(hidden).relu()
        return self.head(hidden)  # type: ignore[no-any-return]


class Forces(nn.Module):
    """A potential, and its gradient by the positions, as networks of atoms compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.last(F.silu(self.first(x)))
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return {"energy": energy.detach(), "forces": -gradient}


class Keeping(nn.Module):
    """It keeps a value of its last call, with the graph behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.first(x).relu()
        return self.last(self.hidden)  # type: ignore[no-any-return]


def two(last: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 4).to(last)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), head).eval()


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = correlated((64, WIDTH), (64, WIDTH))
    journey = travel(Routed().eval(), batches, tmp_path)
    assert set(journey.plan) >= {"router", "head", "experts.0", "experts.1", "experts.2"}


def test_branches_that_depend_on_the_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Exiting().eval()
    large = correlated((40, WIDTH), (40, WIDTH))
    batches = [large[0], 0.2 * large[1].clamp(-4, 4)]
    journey = travel(model, batches, tmp_path)
    assert journey.refusal.startswith("Exiting: torch cannot trace it")
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest


def test_gradients_in_a_forward_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Forces().eval()
    batches = correlated((40, WIDTH), (40, WIDTH))
    journey = travel(model, batches, tmp_path)
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest


def test_a_value_that_is_kept_with_its_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Keeping().eval()
    batches = correlated((40, WIDTH), (40, WIDTH))
    model(batches[0])
    assert model.hidden is not None
    assert model.hidden.grad_fn is not None
    travel_well(model, batches, tmp_path)


def test_layers_of_several_types_under_autocast(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        model = two(torch.bfloat16)
        batches = correlated((40, WIDTH), (40, WIDTH))
        journey = travel(model, batches, tmp_path)
        nearest = off(model, rounded(model, journey.packed.plan), batches)
        assert off(model, journey.network, batches) < nearest


def test_a_forward_that_was_patched_on_an_instance_is_refused_in_one_line() -> None:
    model: Any = nn.Sequential(two(), nn.Linear(4, 4)).eval()
    original = model[0].forward
    model[0].forward = lambda x: original(x)
    plan, batches = Plan.uniform(model, 3), correlated((80, WIDTH))
    before = copied(model.state_dict())
    for use in (
        lambda: calibrate(model, plan, batches),
        lambda: Incremental(model, plan, inputs=batches),
        lambda: search(model, batches, trials=16),
    ):
        with pytest.raises(PlanError, match="forward was patched on the instance 0") as error:
            use()
        assert "\n" not in str(error.value)
        assert same(model.state_dict(), before)


@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_numbers_that_are_too_large_are_named_in_one_line(where: str) -> None:
    model: Any = two()
    (x,) = correlated((80, WIDTH))
    if where == "inputs":
        x[:, 3] *= 3e19
    else:
        with torch.no_grad():
            model[0].weight[2, 3] = 1e30
    before = copied(model.state_dict())
    with pytest.raises(OctavoError) as error:
        calibrate(model, Plan.uniform(model, 3), [x])
    assert "\n" not in str(error.value)
    what = "0: expected calibration inputs" if where == "inputs" else "0.weight: expected weights"
    assert str(error.value).startswith(f"{what} whose squares fit float32")
    assert same(model.state_dict(), before)
