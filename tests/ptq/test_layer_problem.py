"""A layer's problem: candidates are compared by error and price, and the better one wins by row."""

import torch
from torch import Tensor, nn

from octavo.network.layers import find_layers
from octavo.network.moments import Moments
from octavo.ptq.layer_problem import Candidate, LayerProblem, better
from octavo.ptq.level_scale import LevelScale


def problem_of(seed: int = 0) -> tuple[LayerProblem, Tensor]:
    torch.manual_seed(seed)
    module = nn.Linear(10, 4)
    (layer,) = find_layers(module)[0]
    inputs = torch.randn(1, 10, 10) @ torch.randn(1, 10, 50)
    moments = Moments.of(layer)
    moments.add(slice(None), inputs)
    return LayerProblem.of(
        module.weight.detach(), moments, 3, 0.01, torch.zeros(4, 10).bool()
    ), inputs


def candidate(exponents: list[int], error: list[float], paid: list[float]) -> Candidate:
    codes = torch.full((1, len(error), 3), exponents[0], dtype=torch.uint8)
    values = torch.tensor([error, paid], dtype=torch.float64)
    return Candidate(
        LevelScale.of(torch.tensor(exponents), 0, codes.shape), codes, values[:1], values[1:]
    )


def test_a_candidate_has_the_error_of_its_outputs_and_the_price_of_its_codes() -> None:
    problem, inputs = problem_of()
    codes = torch.randint(0, 5, (1, 4, 10), dtype=torch.uint8)
    scale = LevelScale.of(torch.tensor([-2, -1, -2, -3]), 0, codes.shape).times(1.25)
    level = problem.unit.levels()[codes.long()] * torch.ldexp(scale.row_factor(), scale.exponent())
    plain = problem.candidate(scale, codes)
    expected = ((problem.target - level) @ inputs.double()).square().sum(2)
    torch.testing.assert_close(plain.error, expected, rtol=1e-4, atol=1e-6)
    assert not plain.paid.any()
    price = torch.rand(1, 4, 1, dtype=torch.float64)
    priced = problem.priced(codes, price)
    assert priced.prices is not None
    paid = price[..., 0] * priced.prices.bits[codes.long()].sum(2)
    assert torch.equal(priced.candidate(scale, codes).cost, plain.error + paid)
    assert problem.repriced(codes) is problem


def test_rows_take_the_better_candidate_each() -> None:
    first = candidate([1, 1], [1.0, 5.0], [3.0, 0.0])
    other = candidate([2, 2], [2.0, 5.0], [1.0, 1.0])
    best = better(first, other)
    assert best.scale.max_exponent.tolist() == [2, 1]
    assert best.codes[0, :, 0].tolist() == [2, 1]
    assert best.cost.tolist() == [[3, 5]]
    assert best.error.tolist() == [[2, 5]]


def test_independent_weights_have_the_error_of_the_weights() -> None:
    rows = torch.randn(6, 3, 2)
    problem = LayerProblem.independent(rows, 3)
    codes = torch.zeros(1, 6, 6, dtype=torch.uint8)
    found = problem.candidate(LevelScale.of(torch.tensor(0), 0, codes.shape), codes)
    expected = (rows.flatten(1) + 1).square().sum(1)
    torch.testing.assert_close(found.error[0].float(), expected)
