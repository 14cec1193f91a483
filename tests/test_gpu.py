"""On a GPU: the codes of a CPU, and training steps that wait for nothing."""

import copy

import pytest
import torch
from torch import Tensor, nn

from octavo import Incremental, Plan, calibrate
from octavo.formats.fitting import Fit
from octavo.storage.packed import Packed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

# Sums in another order move a weight across the edge between two levels now and then.
TIES = 0.01


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10),
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def differing(packed: Packed, other: Packed) -> float:
    """The share of weights that two files give other values."""
    weights = [(packed.layers[name].weight(), other.layers[name].weight()) for name in packed.plan]
    changed = sum(int((one != two).sum()) for one, two in weights)
    return changed / sum(one.numel() for one, _ in weights)


@pytest.mark.parametrize("fit", ["mse", "max"])
def test_calibration_at_a_rate_finds_the_codes_of_a_cpu(fit: Fit) -> None:
    there = net().cuda()
    plan = Plan.uniform(there, 4)
    on_cpu = calibrate(net(), plan, [images()], rate=1.0, fit=fit)
    on_gpu = calibrate(there, plan, [images()], rate=1.0, fit=fit)
    assert differing(on_cpu, on_gpu) <= TIES


@pytest.mark.parametrize("sequential", [True, False])
def test_calibration_finds_the_codes_of_a_cpu(sequential: bool) -> None:
    there = copy.deepcopy(net()).cuda()
    plan = Plan.uniform(net(), 4)
    on_cpu = calibrate(net(), plan, [images()], sequential=sequential)
    on_gpu = calibrate(there, plan, [images()], sequential=sequential)
    assert differing(on_cpu, on_gpu) <= TIES


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_freezing_takes_the_levels_of_a_cpu(rate: float) -> None:
    packed = []
    for model in (net(), net().cuda()):
        incremental = Incremental(model, Plan.uniform(model, 4), portions=(1.0,), rate=rate)
        for _ in incremental:
            pass
        packed.append(incremental.finish())
    assert differing(*packed) <= (TIES if rate else 0)


def test_freezing_at_a_rate_refits_on_the_gpu() -> None:
    model = net().cuda()
    incremental = Incremental(model, Plan.uniform(model, 4), inputs=[images()], rate=1.0)
    for _ in incremental:
        pass
    assert model(images().cuda()).isfinite().all()
    assert incremental.finish().plan == Plan.uniform(net(), 4)


@pytest.mark.parametrize("straight_through", [1, 0.5])
def test_a_training_step_waits_for_nothing(straight_through: float) -> None:
    model = net().cuda().train()
    x, y = images().cuda(), torch.arange(128, device="cuda") % 10
    for _ in Incremental(
        model, Plan.uniform(model, 4), portions=(0.5, 1.0), straight_through=straight_through
    ):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):  # the first step allocates
            torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
