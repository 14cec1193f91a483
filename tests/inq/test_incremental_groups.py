"""INQ with one exponent for each group of inputs: every kind of layer, resumed runs, refitting,
and straight-through projection."""

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inq.networks import correlated
from tests.inq.test_incremental_kinds import KINDS, output_channels, own_weights
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.storage.packed import Packed

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none

SIZE = 5
E2M1 = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]
PLANS: list[Any] = ["fp4", "fp6", "int8", 3, "apot5"]


def nearest_in_groups(channel: Tensor) -> Tensor:
    """Each weight's nearest level in exact fractions: FP4 with the least power of two as scale that
    reaches the group's largest weight; channels are counted first, then the kernel."""
    result = []
    for group in channel.flatten().split(SIZE):
        values = [Fraction(value) for value in group.tolist()]
        largest = max(map(abs, values))
        scale = next(Fraction(2) ** e for e in range(-60, 60) if largest <= 6 * Fraction(2) ** e)
        levels = [sign * level * scale for level in E2M1 for sign in (1, -1)]
        result += [min(levels, key=lambda one: (abs(value - one), -abs(one))) for value in values]
    return torch.tensor([float(level) for level in result]).view(channel.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_takes_the_levels_of_its_groups(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = KINDS[kind][0]()
    expected = {}
    for name, (module, parameter) in own_weights(model).items():
        expected[name] = torch.empty_like(parameter, requires_grad=False)
        for channel in output_channels(module, parameter.shape):
            expected[name][channel] = nearest_in_groups(parameter.detach()[channel])
    fresh = copy.deepcopy(model)
    incremental = Incremental(
        model, Plan.uniform(model, "fp4"), portions=(1.0,), fit="max", per=("group", SIZE)
    )
    list(incremental)
    incremental.finish().save(tmp_path / "net.safetensors")
    Packed.load(tmp_path / "net.safetensors").apply(fresh)
    for state in (model.state_dict(), fresh.state_dict()):
        for name, weight in expected.items():
            assert torch.equal(state[name], weight), name


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(42, 4)).eval()


def train(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("width", PLANS)
@pytest.mark.parametrize(
    "options", [{}, {"straight_through": 0.5}, {"inputs": [correlated(40, 3, 9)]}]
)
def test_a_resumed_run_ends_the_same(width: Any, options: dict[str, Any], tmp_path: Path) -> None:
    x = correlated(40, 3, 9)

    def go_on(incremental: Incremental, *, save: bool) -> Packed:
        model: Any = incremental.model
        for stage in incremental:
            seen = [layer.weight.detach().clone() for layer in (model[0], model[3])]
            if not stage.last:
                train(model, x)
            for before, layer in zip(seen, (model[0], model[3]), strict=True):
                frozen = stage.frozen["0" if layer is model[0] else "3"]
                assert torch.equal(layer.weight[frozen], before[frozen])
            if save and stage.index == 0:
                torch.save(incremental.state_dict(), tmp_path / "state.pt")
        return incremental.finish()

    model = net()
    plan = Plan.uniform(model, width)
    chosen: dict[str, Any] = {"portions": (0.5, 0.8, 1.0), "per": ("group", 4), **options}
    whole = go_on(Incremental(model, plan, **chosen), save=True)
    model = net()
    resumed = Incremental(model, plan, **chosen)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again = go_on(resumed, save=False)
    for name, layer in whole.layers.items():
        assert torch.equal(again.layers[name].weight(), layer.weight())
        assert layer.codebook.group_size == 4
    other = Incremental(net(), plan, **{**chosen, "per": ("group", 8)})
    with pytest.raises(PlanError, match=r"^per: expected the state of a run with \('group', 8\)"):
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", "random"])
def test_every_order_knows_groups(order: Any) -> None:
    model = net()
    incremental = Incremental(model, Plan.uniform(model, "fp4"), order=order, per=("group", 4))
    list(incremental)
    packed = incremental.finish()
    for name, layer in packed.layers.items():
        expected = layer.codebook.project(layer.weight())
        assert torch.equal(layer.weight(), expected), name
