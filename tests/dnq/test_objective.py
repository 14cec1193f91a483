"""An objective is a finite number, or an error that names the plan."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from octavo.dnq.objective import checked_objective
from octavo.errors import PlanError


@pytest.mark.parametrize(
    "value", [-2, -2.0, np.float32(-2), torch.tensor(-2.0), torch.ones(1) * -2]
)
def test_numbers_of_any_type_are_numbers(value: Any) -> None:
    number = checked_objective(value, "a 3")
    assert (number, type(number)) == (-2.0, float)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, "None"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (torch.tensor(math.nan), "nan"),
        (torch.ones(2), "Tensor"),
        ("0.5", "str"),
        ([1.0], "list"),
    ],
)
def test_everything_else_is_refused_with_an_error_that_names_the_plan(value: Any, got: str) -> None:
    said = rf"^objective: expected a finite number, got {got} for the plan with a 3, b float$"
    with pytest.raises(PlanError, match=said):
        checked_objective(value, "a 3, b float")
