"""Moments of full-precision inputs, and layers that freeze from them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.layers import Layer, find_layers
from octavo.network.moments import Moments
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.float_inputs import float_moments, freeze_from_float
from octavo.ptq.layer_solver import solve
from octavo.ptq.settings import PtqSettings
from octavo.ptq.site import Site


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.shared = nn.Linear(5, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.first(x).relu()).relu()
        return self.last(self.shared(x).relu())  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 4)
        self.out = nn.Linear(4, 9)
        self.out.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.emb(tokens).tanh())  # type: ignore[no-any-return]


def inputs_of(module: Any, model: nn.Module, batches: list[Tensor]) -> Tensor:
    """What a module is called with, rows of all calls: (rows, columns)."""
    given: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    for batch in batches:
        model(batch)
    hook.remove()
    return torch.cat([one.flatten(0, -2) for one in given])


def test_a_module_that_is_called_twice_is_solved_for_both_calls() -> None:
    torch.manual_seed(0)
    model, batches = Twice(), [torch.randn(9, 5) for _ in range(2)]
    layers = find_layers(model)[0]
    X = inputs_of(model.shared, model, batches)
    assert len(X) == 36
    moments = float_moments(model, batches, layers)
    assert list(moments) == ["first", "shared", "last"]
    assert torch.allclose(moments["shared"].hessian[0], X.T @ X, rtol=1e-4)
    assert [moment.seen for moment in moments.values()] == [18, 36, 18]
    expected = solve(layers[1], moments["shared"], 3, PtqSettings())
    packed = calibrate(model, Plan.uniform(model, 3), batches)
    assert torch.equal(packed.layers["shared"].codes, expected.codes)


def test_a_tied_weight_is_solved_for_both_its_places() -> None:
    torch.manual_seed(0)
    model = Tied()
    tokens = torch.randint(0, 9, (3, 5))
    X = inputs_of(model.out, model, [tokens])
    moments = float_moments(model, [tokens], find_layers(model)[0])["emb"]
    assert torch.allclose(moments.hessian[0], X.T @ X + 15 / 9 * torch.eye(4), atol=1e-4)


def test_layers_freeze_after_all_moments_were_collected() -> None:
    torch.manual_seed(0)
    model, batches = Twice(), [torch.randn(9, 5)]
    layers = find_layers(model)[0]
    expected = float_moments(model, batches, layers)

    def freeze(layer: Layer, moments: Moments, _: Site | None) -> Tensor:
        layer.weight.data.zero_()
        return moments.hessian

    found = freeze_from_float(model, layers, batches, freeze)
    assert list(found) == ["first", "shared", "last"]
    assert all(torch.equal(found[name], expected[name].hessian) for name in found)


def test_a_layer_that_no_input_reaches_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    model = Idle()
    with pytest.raises(PlanError, match=r"^idle: no calibration input reaches this layer"):
        float_moments(model, [torch.ones(2, 3)], find_layers(model)[0])
