"""The exponents that are tried: those of least error, and their neighbours within the codebook."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.formats.codebook import LARGEST, SMALLEST
from octavo.formats.registry import fitted_codebook
from octavo.network.layers import find_layers
from octavo.network.moments import Moments
from octavo.ptq.exponents import neighbours, start_of
from octavo.ptq.layer_problem import LayerProblem


def problem_of(inputs: Tensor) -> tuple[LayerProblem, Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(12, 5)
    (layer,) = find_layers(module)[0]
    moments = Moments.of(layer)
    moments.add(slice(None), inputs)
    rows = module.weight.detach()
    return LayerProblem.of(rows, moments, 3, 0.01, torch.zeros_like(rows).bool()), rows


@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 4)])
@pytest.mark.parametrize("fit", ["max", "mse"])
def test_it_starts_at_the_nearest_levels(per: Any, fit: Any) -> None:
    problem, rows = problem_of(torch.randn(1, 12, 40, generator=torch.Generator().manual_seed(1)))
    start = start_of(problem, rows, per, fit, "fc")
    codebook = fitted_codebook(rows, 3, fit=fit, per=per)
    assert torch.equal(start.scale.max_exponent, codebook.max_exponent)
    assert torch.equal(start.codes[0], codebook.encode(rows))
    assert len(start.exponents) == (3 if fit == "mse" else 1)


def test_inputs_that_count_more_choose_the_exponent() -> None:
    inputs = torch.ones(1, 12, 1).repeat(1, 1, 2)
    inputs[:, 1:] = 1e-3
    problem, rows = problem_of(inputs)
    rows[:, 0] = 4.0
    problem = LayerProblem.of(
        rows, _moments(rows, inputs), 2, 0.0001, torch.zeros_like(rows).bool()
    )
    start = start_of(problem, rows, "channel", "mse", "fc")
    assert start.exponents[0].tolist() == [2] * 5


def _moments(rows: Tensor, inputs: Tensor) -> Moments:
    module = nn.Linear(rows.shape[1], rows.shape[0])
    (layer,) = find_layers(module)[0]
    moments = Moments.of(layer)
    moments.add(slice(None), inputs)
    return moments


def test_neighbours_are_within_the_codebook() -> None:
    problem, _ = problem_of(torch.randn(1, 12, 40))
    exponent = torch.tensor([SMALLEST, 0, LARGEST])
    assert [one.tolist() for one in neighbours(problem, exponent)] == [
        [SMALLEST, 0, LARGEST],
        [SMALLEST + 1, 1, LARGEST],
        [SMALLEST, -1, LARGEST - 1],
    ]
