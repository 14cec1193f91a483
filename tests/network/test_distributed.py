"""Models that are wrapped for several ranks are refused where the order of calls is wrong."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from octavo.activations.quantization import quantize_activations
from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.pruning.surgery import Surgery


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank."""
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", rank=0, world_size=1, init_method=store)
    yield
    distributed.destroy_process_group()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("inside", [True, False])
def test_a_model_that_is_wrapped_already_is_refused(inside: bool) -> None:
    plain = network()
    wrapper = DistributedDataParallel(plain)
    model: nn.Module = plain if inside else wrapper
    plan = Plan.uniform(model, 3)
    before = [(name, id(one)) for name, one in model.named_parameters()]
    x = torch.randn(4, 8)
    with pytest.raises(PlanError, match=r"call Incremental\(model, ...\) first, .* and wrap"):
        Incremental(model, plan)
    with pytest.raises(PlanError, match=r"call Surgery\(model, ...\) first"):
        Surgery(model, 0.5, steps=3)
    with pytest.raises(PlanError, match=r"call quantize_activations\(model, ...\) first"):
        quantize_activations(model, [x], 8)
    assert [(name, id(one)) for name, one in model.named_parameters()] == before
    wrapper(x).sum().backward()


@pytest.mark.usefixtures("ranks")
def test_a_model_is_wrapped_afterwards_and_a_wrapper_that_is_gone_does_not_count() -> None:
    model = network()
    wrapper = DistributedDataParallel(model)
    wrapper.itself = [wrapper]  # type: ignore[assignment]  # only the garbage collector frees it
    del wrapper
    incremental = Incremental(model, Plan.uniform(model, 3))
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for stage in incremental:
        for _ in range(0 if stage.last else 2):
            optimizer.zero_grad()
            wrapper(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
    packed = incremental.finish()
    assert torch.equal(model[0].weight, packed.layers["0"].weight())  # type: ignore[arg-type]
