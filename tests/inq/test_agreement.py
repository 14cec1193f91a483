"""Two ranks that train one network by INQ freeze the same weights at the same levels."""

from typing import Any

import pytest
import torch
from tests.ranks import Ranks as Processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from octavo.errors import OctavoError, PlanError, TrainingError
from octavo.inq.incremental import Incremental
from octavo.storage.packed import Packed

PLAN = {"0": 3, "3": 4}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 8)).square().mean().backward()
    optimizer.step()


def train(incremental: Incremental, model: nn.Module) -> Packed:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for stage in incremental:
        for _ in range(0 if stage.last else 2):
            step(model, optimizer)
    return incremental.finish()


def by_ddp(number: int, refit: bool, order: str) -> Packed:
    """Each rank has weights, batches and calibration inputs of its own."""
    model = network()
    inputs = [torch.randn(16, 8)] if refit else None
    incremental = Incremental(model, PLAN, inputs=inputs, order=order)  # type: ignore[arg-type]
    return train(incremental, DistributedDataParallel(model))


@pytest.mark.parametrize(("refit", "order"), [(False, "random"), (True, "magnitude")])
def test_ranks_of_other_seeds_end_with_one_network(
    on_two_ranks: Processes, refit: bool, order: str
) -> None:
    first, second = on_two_ranks(by_ddp, refit, order)
    assert isinstance(first, Packed), first.__notes__
    for name, layer in first.layers.items():
        assert torch.equal(layer.codes, second.layers[name].codes)
        assert torch.equal(layer.weight(), second.layers[name].weight())
    for (names, one), (_, other) in zip(first.floats, second.floats, strict=True):
        assert torch.equal(one, other), names


def by_fully_shard(number: int, refit: bool) -> Packed:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    incremental = Incremental(model, PLAN, inputs=[torch.randn(16, 8)] if refit else None)
    mesh = init_device_mesh("cpu", (2,))
    for part in (model[0], model[3], model):
        fully_shard(part, mesh=mesh)
    return train(incremental, model)


def test_sharded_ranks_end_with_one_network(on_two_ranks: Processes) -> None:
    torch.manual_seed(1000)  # as rank 0
    start = network()
    incremental = Incremental(start, PLAN)
    first, second = on_two_ranks(by_fully_shard, False)
    assert isinstance(first, Packed), first.__notes__
    for name, layer in first.layers.items():
        assert torch.equal(layer.codes, second.layers[name].codes)
        exponents = [one.codebook.max_exponent for one in incremental._layers if one.name == name]
        assert torch.equal(layer.codebook.max_exponent, exponents[0])
    assert [tensor.shape for _, tensor in first.floats] == [
        tensor.shape for _, tensor in second.floats
    ]


def test_sharded_weights_are_not_refitted(on_two_ranks: Processes) -> None:
    for error in on_two_ranks(by_fully_shard, True):
        assert isinstance(error, PlanError)
        assert "expected every rank to have all of the weights" in str(error)


def drifting(number: int, how: str) -> None:
    """Rank 1 does something that rank 0 does not."""
    model: Any = network()
    settings: dict[str, Any] = {"seed": number} if how == "settings" else {}
    if how == "order":
        settings = {"order": lambda weight, _: torch.rand(weight.shape)}
    if how == "shapes" and number:
        model[3] = nn.Linear(12, 5)
    incremental = Incremental(model, PLAN, **settings)
    for stage in incremental:
        if stage.index == 0 and number and how == "weights":
            with torch.no_grad():
                model[3].parametrizations.weight.original += 1e-3
        if stage.index == 0 and how == "update":  # DDP was forgotten
            step(model, torch.optim.SGD(model.parameters(), 0.01))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("settings", "Incremental: rank 1 differs from rank 0 in seed;"),
        ("shapes", "Incremental: rank 1 differs from rank 0 in the shapes of its model;"),
        ("order", "stage 1: rank 1 differs from rank 0 in 0;"),
        ("weights", "stage 2: rank 1 differs from rank 0 in 3;"),
        ("update", "stage 2: rank 1 differs from rank 0 in 0;"),
    ],
)
def test_a_rank_that_drifts_is_named_on_every_rank(
    on_two_ranks: Processes, how: str, said: str
) -> None:
    for error in on_two_ranks(drifting, how):
        assert isinstance(error, TrainingError)
        assert str(error).startswith(said)


def apart(number: int) -> Tensor:
    """Each rank quantizes a network of its own; the two need not even do as many stages."""
    model = network()
    portions = (0.5, 1.0) if number else (1.0,)
    incremental = Incremental(model, PLAN, portions=portions, distributed=False)
    return train(incremental, model).layers["0"].codes


def test_ranks_that_have_nothing_to_do_with_each_other(on_two_ranks: Processes) -> None:
    first, second = on_two_ranks(apart)
    assert not torch.equal(first, second)


def broadcasts(number: int) -> list[int]:
    """The buffers that DDP sends before, while and after weights freeze."""
    model = network()
    kept = "1.num_batches_tracked"
    model._ddp_params_and_buffers_to_ignore = [kept]  # type: ignore[assignment]  # the user's own
    before = len(DistributedDataParallel(model).modules_buffers)
    incremental = Incremental(model, PLAN)
    during = len(DistributedDataParallel(model).modules_buffers)
    list(incremental)
    incremental.finish()
    return [before, during, len(DistributedDataParallel(model).modules_buffers)]


def test_ddp_sends_no_frozen_weights_but_still_the_norms(on_two_ranks: Processes) -> None:
    assert on_two_ranks(broadcasts) == [[2, 2, 2]] * 2


def resumed(number: int, state: Any) -> Packed | OctavoError:
    model = network()
    incremental = Incremental(model, PLAN)
    incremental.load_state_dict(state)
    return train(incremental, DistributedDataParallel(model))


def test_a_state_of_one_process_is_resumed_by_two(on_two_ranks: Processes) -> None:
    model = network()
    incremental = Incremental(model, PLAN)
    stages = iter(incremental)
    next(stages)
    next(stages)
    frozen = [one.parametrization.frozen.clone() for one in incremental._layers]
    values = [one.parametrization.value.clone() for one in incremental._layers]
    first, second = on_two_ranks(resumed, incremental.state_dict())
    for layer, other, mask, value in zip(
        first.layers.values(), second.layers.values(), frozen, values, strict=True
    ):
        assert torch.equal(layer.codes, other.codes)
        assert torch.equal(layer.weight()[mask], value[mask])
