"""Coordinate descent: it never makes a row worse, its errors are true, and what is fixed stays."""

import pytest
import torch

import octavo.ptq.coordinate_descent
from octavo.ptq.assignment import Assignment
from octavo.ptq.coordinate_descent import descended
from octavo.ptq.rounding import Rounding

LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_each_column_takes_its_best_level_in_turn(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.ptq.coordinate_descent, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    weight = 0.6 * torch.randn(2, 5, 20, generator=generator, dtype=torch.float64)
    X = torch.randn(2, 20, 30, generator=generator, dtype=torch.float64)
    hessian = X @ X.mT
    start = torch.randint(0, 5, weight.shape, generator=generator, dtype=torch.uint8)
    free = torch.rand(weight.shape, generator=generator) < 0.8
    columns = torch.stack([torch.randperm(20, generator=generator) for _ in range(2)])

    expected = start.clone()
    for problem in range(2):
        for row in range(5):
            for column in columns[problem].tolist():
                if free[problem, row, column]:
                    errors = []
                    for code in range(5):
                        expected[problem, row, column] = code
                        left = weight[problem, row] - LEVELS[expected[problem, row].long()]
                        errors.append(float(left @ hessian[problem] @ left))
                    expected[problem, row, column] = errors.index(min(errors))

    found = descended(start, weight, hessian, Rounding(LEVELS), free, columns)
    assert torch.equal(found.codes, expected)
    before = Assignment.measured(start, weight, hessian, Rounding(LEVELS))
    after = Assignment.measured(expected, weight, hessian, Rounding(LEVELS))
    assert bool((after.output_error < before.output_error).all())
    torch.testing.assert_close(found.output_error, after.output_error)
    torch.testing.assert_close(found.weight_error, after.weight_error)
