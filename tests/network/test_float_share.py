"""A model that stays mostly in float says so, once."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo import Budget, Incremental, Plan, calibrate, compress, search
from octavo.activations.quantization import quantize_activations
from octavo.network.float_share import warn_if_mostly_float


class Own(nn.Module):
    """A layer that octavo does not know."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(1000))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def mostly_float() -> nn.Sequential:
    return nn.Sequential(Own(8, 8), Own(8, 4), nn.Linear(4, 4), nn.Linear(4, 2, bias=False))


INPUTS = [torch.randn(4, 8)]
PLAN = {"2": 3, "3": 3}
CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "uniform": lambda model: Plan.uniform(model, 3),
    "calibrate": lambda model: calibrate(model, PLAN, INPUTS),
    "search": lambda model: search(
        model, INPUTS, budget=Budget(average_bits=4), method="uniform", trials=8
    ),
    "Incremental": lambda model: Incremental(model, PLAN),
    "compress": lambda model: compress(
        model, INPUTS, budget=Budget(average_bits=4), method="uniform", trials=8,
        retrain=lambda _: None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_warning_names_inspect_and_what_is_left(call: str) -> None:
    with pytest.warns(UserWarning, match="octavo.inspect") as seen:
        CALLS[call](mostly_float())
    assert str(seen[0].message).startswith(
        "Sequential: 80% of its weights cannot be quantized and stay in float: "
        "0.matrix (64 weights: Own.matrix is not a kind of weight that octavo knows), "
        "1.matrix (32 weights: Own.matrix is not a kind of weight that octavo knows). "
        "octavo.inspect"
    )


@pytest.mark.parametrize("call", CALLS)
def test_it_is_shown_once_for_a_model(call: str) -> None:
    """compress copies the model, searches, calibrates and retrains it."""
    model = mostly_float()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        CALLS[call](model)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("model", "warns"),
    [
        (nn.Sequential(nn.Linear(9, 10), nn.PReLU(10)), False),  # exactly a tenth
        (nn.Sequential(nn.Linear(9, 10), nn.PReLU(11)), True),
        (nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1000), nn.LayerNorm(1000)), False),
        (nn.Sequential(nn.PReLU()), True),
        (nn.Sequential(nn.ReLU()), False),
    ],
)  # fmt: skip
def test_more_than_a_tenth_of_what_is_a_weight(model: nn.Module, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn_if_mostly_float(model)
    assert len(seen) == warns


def test_scales_of_activations_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    quantize_activations(model, [torch.randn(4, 2)], 4)
    warn_if_mostly_float(model)


def test_of_many_only_the_largest_are_named() -> None:
    model = nn.Sequential(*[Own(size, 1) for size in (3, 1, 4, 2, 5)])
    with pytest.warns(UserWarning, match=r"4\.matrix.*2\.matrix.*0\.matrix.* and 2 more\. octavo"):
        warn_if_mostly_float(model)
