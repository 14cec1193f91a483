"""Models without values to quantize are named, wherever they are handed in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import PlanError
from octavo.network.values import check_range, check_values

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:.*weight_norm.*deprecated", "ignore:.*stay in float"
)
X = [torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
BUDGET = octavo.Budget(average_bits=3)


def net() -> Any:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)).eval()


def sparse(layout: str) -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(getattr(model[0].weight.detach(), layout)())
    return model  # type: ignore[no-any-return]


def large(value: float) -> nn.Module:
    model = net()
    model[0].weight.data[1, 2] = value
    return model  # type: ignore[no-any-return]


USES: dict[str, Callable[[nn.Module], object]] = {
    "calibrate": lambda model: octavo.calibrate(model, {"2": 3}, X),
    "search": lambda model: octavo.search(model, X, budget=BUDGET, trials=12, method="random"),
    "compress": lambda model: octavo.compress(model, X, budget=BUDGET),
    "Incremental": lambda model: octavo.Incremental(model, {"2": 3}, inputs=X),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: net().to("meta"), "^0.weight: expected a tensor with values, got one on the dev"),
        (lambda: sparse("to_sparse"), "^0.weight: expected a dense tensor, got one of the layout "),
        (lambda: sparse("to_sparse_csr"), "^0.weight: expected a dense tensor, got .*sparse_csr;"),
        (lazy, "^0.weight: a lazy module has not seen an input yet; call the model once before$"),
        (lambda: large(1e30), r"^0.weight: expected weights whose squares fit.*, got 1\.0e\+30$"),
    ],
    ids=["meta", "sparse", "csr", "lazy", "large"],
)
def test_the_tensor_that_is_at_fault_is_named(
    make: Callable[[], nn.Module], said: str, use: str
) -> None:
    with pytest.raises(PlanError, match=said):
        USES[use](make())


def test_inspection_with_an_example_names_it_too() -> None:
    with pytest.raises(PlanError, match="got one on the device meta"):
        octavo.inspect(net().to("meta"), X[0])
    assert octavo.inspect(net().to("meta")).rows  # nothing is called


def test_buffers_count() -> None:
    model = nn.BatchNorm1d(3)
    model.running_mean = torch.zeros(3, device="meta")
    with pytest.raises(PlanError, match=r"^running_mean: expected a tensor with values"):
        check_values(model)


def test_sound_models_pass() -> None:
    for model in (net(), large(1e17), large(torch.inf), large(torch.nan), nn.ReLU()):
        check_values(model)
        check_range(model)  # what is not finite is named where it is quantized


def old_weight_norm() -> nn.Module:
    model = net()
    nn.utils.weight_norm(model[0])
    return model  # type: ignore[no-any-return]


def deep() -> nn.Module:
    model: nn.Module = net()
    for _ in range(200):
        model = nn.Sequential(model)
    return model


@pytest.mark.parametrize("make", [old_weight_norm, deep])
@pytest.mark.parametrize("use", ["calibrate", "search", "Incremental"])
def test_unusual_models_work(make: Callable[[], nn.Module], use: str) -> None:
    model = make()
    plan = dict.fromkeys(octavo.Plan.uniform(model, 3), 3)
    if use == "calibrate":
        assert octavo.calibrate(model, plan, X).plan == plan
    elif use == "search":
        assert octavo.search(model, X, budget=BUDGET, trials=12, method="random", refine=0).plan
    else:
        incremental = octavo.Incremental(model, plan, inputs=X, portions=(0.5, 1.0))
        list(incremental)
        packed = incremental.finish()
        fresh = make()
        packed.apply(fresh)
        assert torch.equal(fresh(X[0]), model(X[0]))


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.table(x))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            torch.full((16,), 9),
            "^table: the model does not take these calibration inputs: IndexErr",
        ),
        (torch.rand(16), "^table: the model does not take these calibration inputs: RuntimeError"),
        (torch.zeros(16, dtype=torch.int8), "^table: the model does not take these calibration i"),
    ],
    ids=["index", "float", "int8"],
)
@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_search_names_the_layer_that_refuses_an_input(
    at: int, bad: torch.Tensor, said: str, workers: int
) -> None:
    inputs = [torch.arange(16) % 5 for _ in range(8)]
    inputs[at] = bad
    with pytest.raises(PlanError, match=said):
        octavo.search(
            Lookup(), inputs, budget=BUDGET, trials=12, method="random", workers=workers, refine=0
        )
