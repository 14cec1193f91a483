"""All of it in one call: each option gets to where it belongs, and the model stays as it was."""

import copy

import pytest
import torch
from torch import Tensor, nn

from octavo import Budget, BudgetError, Incremental, PlanError, calibrate, compress, search

BUDGET = Budget(average_bits=3.2)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 6, generator=generator), torch.randn(5, 6, generator=generator)]


def nudge(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)


def test_without_retraining_it_is_the_search_and_the_closed_form() -> None:
    packed = compress(net(), iter(batches()), budget=BUDGET, trials=20, seed=2, per="tensor")
    plan = search(net(), batches(), budget=BUDGET, trials=20, seed=2).plan
    expected = calibrate(net(), plan, batches(), per="tensor")
    assert packed.plan == plan
    assert all(
        torch.equal(packed.layers[name].weight(), layer.weight())
        for name, layer in expected.layers.items()
    )


def test_with_retraining_it_is_incremental_from_the_closed_form() -> None:
    model, seen = net(), list[nn.Module]()
    before = copy.deepcopy(model.state_dict())

    def retrain(network: nn.Module) -> None:
        seen.append(network)
        nudge(network)

    options = {"method": "exact", "portions": (0.3, 0.6, 1.0), "order": "random", "seed": 4}
    packed = compress(model, batches(), budget=BUDGET, retrain=retrain, **options)
    assert len(seen) == 2
    assert all(network is not model for network in seen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantized = net()
    calibrate(model, packed.plan, batches()).apply(quantized)
    incremental = Incremental(
        quantized, packed.plan, portions=(0.3, 0.6, 1.0), order="random", seed=4
    )
    for stage in incremental:
        if not stage.last:
            nudge(quantized)
    expected = incremental.finish()
    assert all(
        torch.equal(packed.layers[name].weight(), layer.weight())
        for name, layer in expected.layers.items()
    )


def test_what_it_refuses() -> None:
    with pytest.raises(
        PlanError, match=r"trails: no option of search or calibrate \(the nearest is 'trials'\)"
    ):
        compress(net(), batches(), budget=BUDGET, trails=3)
    with pytest.raises(PlanError, match="portions: no option of search or calibrate"):
        compress(net(), batches(), budget=BUDGET, portions=(0.5, 1.0))
    with pytest.raises(BudgetError, match="feasible"):
        compress(net(), batches(), budget=Budget(average_bits=1.5))


def test_a_pruned_network_keeps_its_zeros() -> None:
    """The closed form that INQ starts from leaves powers of two, whose zeros are not pruned by
    themselves."""
    model = net()
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    zeros = [torch.arange(weight.numel()).view(weight.shape) % 3 == 0 for weight in weights]
    for weight, zero in zip(weights, zeros, strict=True):
        weight.data[zero] = 0
    for retrain in (nudge, None):
        packed = compress(model, batches(), budget=BUDGET, retrain=retrain, method="exact")
        assert all(
            bool((layer.weight()[zero] == 0).all())
            for layer, zero in zip(packed.layers.values(), zeros, strict=True)
        )
