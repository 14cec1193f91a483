"""INQ on pruned networks: zeros stay, portions count the survivors."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inq.networks import Net, batch, far, net, seen, train
from torch import nn
from torch.nn import functional as F

from octavo.errors import PlanError
from octavo.formats.powers_of_two import power_of_two
from octavo.inq.incremental import Incremental
from octavo.inq.parametrization import FrozenWeights
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed


def sparse(share: float = 0.6, seed: int = 0) -> Net:
    """A network with that share of its weights pruned, drawn at random."""
    model, draw = net(seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.first, model.last):
            zeros = torch.rand(layer.weight.shape, generator=draw) < share
            zeros.view(-1)[0] = False
            layer.weight[zeros] = 0
    return model


@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", far, "random"])
@pytest.mark.parametrize("inputs", [None, [batch(7), batch(8)]])
def test_portions_count_survivors_and_zeros_stay(order: Any, inputs: Any) -> None:
    model = sparse()
    zeros = {name: weight == 0 for name, weight in seen(model).items()}
    portions = (0.3, 0.55, 1.0)
    for stage in (
        incremental := Incremental(
            model, {"first": 3, "last": 2}, portions=portions, order=order, inputs=inputs
        )
    ):
        for name, mask in stage.frozen.items():
            survivors = int((~zeros[name]).sum())
            assert bool(mask[zeros[name]].all())
            assert int(mask[~zeros[name]].sum()) == round(stage.portion * survivors)
        train(model, seed=stage.index)
        assert all(bool((weight[zeros[name]] == 0).all()) for name, weight in seen(model).items())
    incremental.finish()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.AdamW(parameters, 0.02, weight_decay=0.05),
    ],
)
def test_zeros_outlast_any_optimizer_and_the_file(make: Any, tmp_path: Path) -> None:
    model = sparse()
    zeros = {name: weight == 0 for name, weight in seen(model).items()}
    optimizer = make(model.parameters())
    incremental = Incremental(model, Plan.uniform(model, 4), portions=(0.5, 1.0))
    for step in range(50):
        if step in (0, 25):
            next(iter(incremental))
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)), torch.arange(8) % 5).backward()
        optimizer.step()
    incremental.finish().save(tmp_path / "sparse.safetensors")
    again = net(1)
    Packed.load(tmp_path / "sparse.safetensors").apply(again)
    for name, weight in seen(again).items():
        assert bool((weight[zeros[name]] == 0).all())
        assert torch.equal(weight, seen(model)[name])


def test_sparse_networks_get_finer_portions_unless_told_otherwise() -> None:
    assert Incremental(net(), {"first": 3}).portions == (0.5, 0.75, 0.875, 1.0)
    assert Incremental(sparse(0.8), {"first": 3}).portions[:4] == (0.05, 0.1, 0.15, 0.2)
    for given in ((0.5, 1.0), (0.5, 0.75, 0.875, 1.0)):
        assert Incremental(sparse(0.8), {"first": 3}, portions=given).portions == given
    assert Incremental(sparse(0.8), {"first": 3}, masks={}).portions == (0.5, 0.75, 0.875, 1.0)


def test_a_mask_prunes_whatever_the_weights_are() -> None:
    model = net()
    mask = torch.arange(97).view(1, 97) % 3 > 0
    incremental = Incremental(
        model, {"first": 3, "last": 3}, portions=(1.0,), masks={"first": mask}
    )
    assert torch.equal(model.first.weight != 0, mask)
    list(incremental)
    assert bool((incremental.finish().layers["first"].weight()[~mask] == 0).all())


def test_masked_weights_come_back_if_the_run_cannot_begin() -> None:
    model = net()
    weight = model.first.weight.detach().clone()
    before = torch.get_rng_state()
    bad = [torch.full_like(batch(7), math.nan)]
    with pytest.raises(PlanError, match="finite calibration inputs"):
        Incremental(model, {"first": 3}, masks={"first": weight > 0}, inputs=bad)
    assert torch.equal(model.first.weight, weight)
    assert not hasattr(model.first, "parametrizations")
    assert torch.equal(torch.get_rng_state(), before)


def test_zeros_that_calibrate_made_may_move_again() -> None:
    model = net()
    calibrate(model, {"first": 2}, [batch(0)]).apply(model)
    zeros = int((model.first.weight == 0).sum())
    assert zeros > 10
    stage = next(iter(Incremental(model, {"first": 2}, portions=(0.1, 1.0))))
    assert int(stage.frozen["first"].sum()) == 10  # of all 97


@pytest.mark.parametrize("fit", ["max", "mse"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_the_exponent_is_that_of_the_survivors(fit: Any, per: Any) -> None:
    """Zeros add no error, so that of the row without them is the same."""
    weight = torch.randn(1, 60, generator=torch.Generator().manual_seed(3))
    model = nn.Linear(600, 1)
    model.weight.data.zero_()[:, ::10] = weight
    incremental = Incremental(model, {"weight": 3}, portions=(1.0,), fit=fit, per=per)
    list(incremental)
    found = incremental.finish().layers["weight"].codebook.max_exponent
    assert torch.equal(found, power_of_two(weight, 3, fit=fit, per=per).max_exponent)


def test_a_sparse_run_resumes_on_a_network_that_is_not() -> None:
    """The state knows what is pruned, and the portions that followed from it."""
    packed = []
    for cut in (None, 4):
        model = sparse(0.8)
        incremental = Incremental(model, {"first": 3, "last": 3})
        for stage in incremental:
            train(model, seed=stage.index)
            if stage.index == cut:
                break
        if cut is not None:
            state = copy.deepcopy(incremental.state_dict())
            model = net(5)
            incremental = Incremental(model, {"first": 3, "last": 3})
            incremental.load_state_dict(state)
            for stage in incremental:
                train(model, seed=stage.index)
        packed.append(incremental.finish())
    for name in ("first", "last"):
        assert torch.equal(packed[0].layers[name].weight(), packed[1].layers[name].weight())


def test_the_bound_closes_by_the_share_of_survivors_that_is_free() -> None:
    """A pruned network's free weights have as much room as a dense one's."""
    model = sparse(0.8)
    incremental = Incremental(model, {"first": 3}, portions=(0.5, 1.0))
    next(iter(incremental))
    free = 1 - round(0.5 * int((sparse(0.8).first.weight != 0).sum())) / int(
        (sparse(0.8).first.weight != 0).sum()
    )
    parametrization: Any = next(
        module for module in model.first.modules() if isinstance(module, FrozenWeights)
    )
    bound = (1.5 + 3 * free) * parametrization.scale
    assert torch.allclose(parametrization.upper, bound)
    assert torch.allclose(parametrization.lower, -bound)


def test_the_padding_of_an_embedding_is_not_pruned() -> None:
    model = nn.Embedding(6, 4, padding_idx=2)
    model.weight.data[4] = 0
    stage = next(iter(Incremental(model, {"weight": 3}, portions=(0.5, 1.0))))
    assert int(stage.frozen["weight"].sum()) == 4 + 10
    assert bool(stage.frozen["weight"][4].all())
