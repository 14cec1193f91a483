"""What does not depend on the rate is measured once, however many rates are tried."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.plan import Budget, Plan
from octavo.ptq import network_solver
from octavo.ptq.calibration import calibrate
from octavo.ptq.network_solver import calibrate_quietly, rate_factors, solve_network
from octavo.ptq.settings import PtqSettings


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers)


def inputs() -> list[Tensor]:
    return [torch.randn(72, 24, generator=torch.Generator().manual_seed(1))]


def test_factors_that_were_measured_before_give_the_same_network() -> None:
    model = network()
    plan = Plan.uniform(model, "apot5")
    settings = PtqSettings(rate=3.0)
    factors = rate_factors(model, plan, iter(inputs()), PtqSettings())
    assert len(set(factors.values())) == 3
    again = solve_network(model, plan, inputs(), settings, factors=factors).checked()
    packed = calibrate_quietly(model, plan, inputs(), settings)
    others = solve_network(model, plan, inputs(), settings, factors=dict.fromkeys(factors, 1.0))
    other = others.checked()
    for name, layer in packed.layers.items():
        assert torch.equal(layer.codes, again.layers[name].codes)
    assert any(
        not torch.equal(layer.codes, other.layers[name].codes)
        for name, layer in packed.layers.items()
    )


def test_under_a_budget_layers_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"compared": 0, "solved": 0}

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            counts[name] += 1
            return function(*args)

        return call

    for name, target in (("compared", "factors_of_layers"), ("solved", "_freeze")):
        function = getattr(network_solver, target)
        monkeypatch.setattr(network_solver, target, counting(name, function))
    model = network()
    plan = Plan.uniform(model, "apot5")
    plain = calibrate(model, plan, inputs(), floats="folded").file_bytes
    assert counts == {"compared": 0, "solved": 1}
    calibrate(model, plan, inputs(), budget=Budget(bytes=int(0.8 * plain)))
    assert counts["compared"] == 1
    assert counts["solved"] > 3
