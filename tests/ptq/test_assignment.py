"""The errors of codes, against their definition row by row."""

import pytest
import torch

from octavo.ptq.assignment import Assignment
from octavo.ptq.rounding import Rounding


def test_errors_are_measured_on_the_codes() -> None:
    levels = torch.tensor([-1.0, 0.0, 1.0])
    weight = torch.tensor([[[0.5, -0.25], [1.0, 0.0]]])
    codes = torch.tensor([[[2, 1], [2, 1]]], dtype=torch.uint8)
    X = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 4.0, -1.0]]])
    found = Assignment.measured(codes, weight, X @ X.mT, Rounding(levels))
    # e = (-0.5, -0.25): e X = (-0.5, -2.0, -1.25)
    assert found.output_error.tolist() == [[pytest.approx(0.25 + 4.0 + 1.5625), 0.0]]
    assert found.weight_error.tolist() == [[pytest.approx(0.3125), 0.0]]
    assert found.output_error.dtype == found.weight_error.dtype == torch.float64
    assert found.codes is codes
