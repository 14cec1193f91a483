"""A copy of a model is checked to be one: see also tests/ptq/test_impure_networks.py."""

from typing import Any

import pytest
import torch
from torch import nn

from octavo.errors import PlanError
from octavo.network.faithful import faithful_copy


def test_the_model_is_as_it_was_even_if_its_calls_change_weights() -> None:
    model = nn.Embedding(5, 3, max_norm=0.1)
    before = model.weight.detach().clone()
    twin: Any = faithful_copy(model, torch.arange(5))
    assert torch.equal(model.weight, before)
    assert twin.weight is not model.weight


def test_a_copy_that_shares_a_tensor_with_the_model_on_purpose_is_fine() -> None:
    class Shared(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
            return self

    model = nn.Sequential(Shared(3, 3), nn.Linear(3, 3))
    twin = faithful_copy(model, torch.ones(2, 3))
    assert twin[0] is model[0]  # type: ignore[index]


def test_without_inputs_nothing_is_checked() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3))
    held = model[0]
    model.forward = lambda x: held(x)
    assert faithful_copy(model) is not model
    with pytest.raises(PlanError, match=r"^0\.weight: "):
        faithful_copy(model, torch.ones(2, 3))
