"""The weights that count as pruned, masks that are given, and the masks of torch.nn.utils.prune."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.network.layers import find_layers
from octavo.plan import Plan
from octavo.pruning.masks import find_kept, find_pruned, fold_masks, set_to_zero
from octavo.ptq.calibration import calibrate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def images(seed: int = 0) -> Tensor:
    return torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, weight_decay=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(step)).square().mean().backward()
        optimizer.step()


# What is pruned.


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


def test_the_kept_weights_of_a_plan_are_found_before_ptq_makes_zeros() -> None:
    model = net()
    with torch.no_grad():
        model.fc.weight[:, ::2] = 0
    kept = find_kept(model, Plan.uniform(model, 2))
    assert list(kept) == ["fc"]
    assert torch.equal(kept["fc"], model.fc.weight != 0)
    assert find_kept(model, {"conv": 2}) == {}


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


# torch.nn.utils.prune.


def test_torchs_masks_are_named_before_and_folded_on_demand() -> None:
    model = net()
    plan = Plan.uniform(model, 3)
    prune.l1_unstructured(model.conv, "weight", 0.5)
    prune.random_unstructured(model.conv, "weight", 0.5)  # two of them make a container
    masked = r"conv.weight_orig: torch.nn.utils.prune masks it: call octavo.fold_masks\(model\)"
    for wrong in (
        lambda: Plan.uniform(model, 3),
        lambda: Incremental(model, plan),
        lambda: Incremental(model, {"fc": 3}),
    ):
        with pytest.raises(PlanError, match=masked):
            wrong()
    parameters = {id(p) for p in model.parameters()}
    seen = model.conv.weight.detach().clone()
    masks = fold_masks(model)
    assert list(masks) == ["conv"]
    assert torch.equal(masks["conv"], seen != 0)
    assert torch.equal(model.conv.weight, seen)
    assert {id(p) for p in model.parameters()} == parameters
    assert int((~masks["conv"]).sum()) == 81
    assert fold_masks(model) == {}
    incremental = Incremental(model, plan)
    for stage in incremental:
        train(model, steps=3)
        assert int(stage.frozen["conv"].sum()) == 81 + round(stage.portion * 27)
    assert torch.equal(incremental.finish().layers["conv"].weight() != 0, seen != 0)


def test_recurrent_layers_are_folded_by_their_own_names() -> None:
    model = nn.LSTM(3, 4)
    prune.l1_unstructured(model, "weight_hh_l0", 0.5)
    masks = fold_masks(model)
    assert list(masks) == ["weight_hh_l0"]
    model(torch.ones(2, 1, 3))
    assert torch.equal(dict(model.named_parameters())["weight_hh_l0"] != 0, masks["weight_hh_l0"])
    assert int(masks["weight_hh_l0"].sum()) == 32
