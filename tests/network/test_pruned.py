"""The weights that count as pruned, masks that are given, and PTQ that keeps to them."""

import copy

import pytest
import torch
from tests.pruning.networks import images, net
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.network.layers import find_layers
from octavo.network.pruned import find_pruned, set_to_zero
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate


def test_zeros_that_ptq_leaves_are_not_pruned() -> None:
    model = net()
    calibrate(model, Plan.uniform(model, 2), [images()]).apply(model)
    assert (model.fc.weight == 0).float().mean() > 0.1
    assert find_pruned(find_layers(model)[0], None) == {}


def test_masks_that_are_given_count_and_must_fit() -> None:
    layers = find_layers(net())[0]
    given = {"fc": torch.ones(5, 54)}
    given["fc"][2, 3] = 0
    found = find_pruned(layers, given)
    assert list(found) == ["fc"]
    assert found["fc"].nonzero().tolist() == [[2, 3]]
    with pytest.raises(
        PlanError, match=r"masks: fcc is no layer that is planned .the nearest is 'fc'"
    ):
        find_pruned(layers, {"fcc": given["fc"]})
    with pytest.raises(
        PlanError, match=r"fc: expected a tensor of the shape \(5, 54\), got \(54, 5\)"
    ):
        find_pruned(layers, {"fc": given["fc"].T})
    with pytest.raises(PlanError, match="got list"):
        find_pruned(layers, {"fc": [True]})  # type: ignore[dict-item]


def test_the_padding_of_an_embedding_is_not_pruned() -> None:
    embedding = nn.Embedding(5, 3, padding_idx=2)
    layers = find_layers(nn.Sequential(embedding))[0]
    assert find_pruned(layers, None) == {}
    with torch.no_grad():
        embedding.weight[4, 1] = 0
    assert find_pruned(layers, None)["0"].nonzero().tolist() == [[4, 1]]


def test_the_padding_of_an_embedding_does_not_make_other_zeros_pruned() -> None:
    embedding = nn.Embedding(100, 30, padding_idx=0)
    layers = find_layers(nn.Sequential(embedding))[0]
    with torch.no_grad():
        embedding.weight[4, 1] = 0
    assert find_pruned(layers, None) == {}


def test_pruned_weights_are_set_to_zero_and_no_others() -> None:
    model = net()
    before = model.fc.weight.detach().clone()
    conv = model.conv.weight.detach().clone()
    pruned = torch.rand(5, 54) < 0.5
    set_to_zero(find_layers(model)[0], {"fc": pruned})
    assert torch.equal(model.fc.weight, before.masked_fill(pruned, 0))
    assert torch.equal(model.conv.weight, conv)


# Masks in PTQ.


class Wide(nn.Module):
    """Layers of more than a thousand weights: one of these is no share that tells of pruning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 64), nn.ConvTranspose1d(64, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().unsqueeze(2))  # type: ignore[no-any-return]


def few_masks(count: int = 3) -> dict[str, Tensor]:
    """Masks of a few weights each, the largest of their layer."""
    masks = {}
    for name, parameter in Wide().named_parameters():
        if parameter.dim() > 1:
            largest = parameter.detach().abs().flatten().topk(count).indices
            mask = torch.ones(parameter.numel(), dtype=torch.bool)
            mask[largest] = False
            masks[name.removesuffix(".weight")] = mask.view(parameter.shape)
    return masks


def correlated(rows: int, seed: int = 0) -> Tensor:
    """Inputs that depend on each other, so that a weight can make up for another."""
    mixing = torch.randn(8, 64, generator=torch.Generator().manual_seed(99))
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)) @ mixing


@pytest.mark.parametrize("sequential", [True, False])
def test_ptq_keeps_to_masks_of_a_few_weights(sequential: bool) -> None:
    """Zeros as few as these would be taken for chance, and made into other levels."""
    model, masks, inputs = Wide().eval(), few_masks(), [correlated(96)]
    before = copy.deepcopy(model.state_dict())
    plan = Plan.uniform(model, 5)
    network = copy.deepcopy(model)
    calibrate(model, plan, inputs, masks=masks, sequential=sequential).apply(network)
    for name, mask in masks.items():
        assert not network.get_parameter(f"{name}.weight")[~mask].any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    others = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            others.get_parameter(f"{name}.weight").mul_(mask)
    without = copy.deepcopy(others)
    calibrate(others, plan, inputs, masks={}, sequential=sequential).apply(without)
    assert any(without.get_parameter(f"{name}.weight")[~mask].any() for name, mask in masks.items())


@torch.no_grad()
def test_the_other_weights_make_up_for_what_a_mask_prunes() -> None:
    model, masks, x = Wide().eval(), few_masks(100), correlated(256, seed=1)
    pruned = copy.deepcopy(model)
    for name, mask in masks.items():
        pruned.get_parameter(f"{name}.weight").mul_(mask)
    network = copy.deepcopy(model)
    calibrate(model, Plan.uniform(model, "apot8"), [correlated(256)], masks=masks).apply(network)
    assert (network(x) - model(x)).norm() < 0.5 * (pruned(x) - model(x)).norm()


def test_incremental_and_ptq_take_the_same_masks() -> None:
    model, masks = Wide().eval(), few_masks()
    incremental = Incremental(
        model, Plan.uniform(model, 4), portions=(0.5, 1.0), inputs=[correlated(96)], masks=masks
    )
    for _ in incremental:
        pass
    incremental.finish()
    for name, mask in masks.items():
        assert not model.get_parameter(f"{name}.weight")[~mask].any()


def test_a_mask_of_no_planned_layer_is_refused() -> None:
    model = Wide()
    with pytest.raises(PlanError, match="masks: last is no layer that is planned"):
        calibrate(model, {"first": 4}, [correlated(8)], masks=few_masks())
