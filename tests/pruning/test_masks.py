"""The masks of a plan, and those of torch.nn.utils.prune."""

import pytest
import torch
from tests.pruning.networks import images, net
from torch import nn
from torch.nn.utils import prune

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.pruning.masks import find_kept, fold_masks


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, weight_decay=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(step)).square().mean().backward()
        optimizer.step()


# What is pruned.


def test_the_kept_weights_of_a_plan_are_found_before_ptq_makes_zeros() -> None:
    model = net()
    with torch.no_grad():
        model.fc.weight[:, ::2] = 0
    kept = find_kept(model, Plan.uniform(model, 2))
    assert list(kept) == ["fc"]
    assert torch.equal(kept["fc"], model.fc.weight != 0)
    assert find_kept(model, {"conv": 2}) == {}


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
