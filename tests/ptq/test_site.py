"""A site measures what a weight does to the real outputs of a layer's module."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.ptq.networks_of_others import Scaled, Standardized
from torch import Tensor, nn

from octavo.network.forward import observing
from octavo.network.layers import Layer, find_layers
from octavo.network.moments import Moments
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.site import Site

See = Callable[[Site, Moments], None]


def visit(
    model: nn.Module, name: str, see: See, inputs: Sequence[Tensor], held_out: Sequence[Tensor] = ()
) -> None:
    """Show the site of one layer."""
    quantized = copy.deepcopy(model)
    seen: list[str] = []

    def freeze(layer: Layer, moments: Moments, site: Site | None) -> None:
        if layer.name == name:
            assert site is not None
            see(site, moments)
            seen.append(name)

    with observing(model), observing(quantized):
        layers = find_layers(quantized)[0]
        freeze_sequentially(model, quantized, layers, inputs, freeze, held_out)
    assert seen == [name]


def test_the_error_is_that_of_the_outputs_and_the_weight_stays() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    x = torch.randn(20, 4)

    def see(site: Site, _: Moments) -> None:
        before = site.layer.weight.clone()
        full = model(x)
        other = model[0](x) @ (0.5 * before).T
        assert site.error(before) == pytest.approx(0, abs=1e-6)
        assert site.error(0.5 * before) == pytest.approx(float(other.norm() / full.norm()), 1e-4)
        assert torch.equal(site.layer.weight, before)

    visit(model, "1", see, [x[:8], x[8:]])


def test_the_error_is_measured_on_held_out_inputs_and_moments_on_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    x = torch.randn(8, 4)
    zeros = torch.zeros(2, 4)

    def see(site: Site, moments: Moments) -> None:
        assert moments.seen == 8
        assert torch.allclose(moments.hessian[0], x.T @ x, atol=1e-4)
        assert site.error(2 * site.layer.weight) == 0  # of zeros, every weight makes zeros

    visit(model, "0", see, [x], [zeros])


@pytest.mark.parametrize(
    ("layer", "described"),
    [
        (nn.Linear(4, 4), True),
        (Standardized(4, 4), False),
        (Scaled(4, 4), False),
        (nn.MultiheadAttention(4, 2), True),
    ],
)
def test_only_torchs_own_layers_are_described(layer: nn.Module, described: bool) -> None:
    own = find_layers(layer)[0][0]
    assert Site(own, [], []).is_described is described


def test_the_states_of_a_recurrent_layer_are_those_that_its_weight_leads_to() -> None:
    """Their second moment is that of the quantized recurrence, and their drift is in the target."""
    model: Any = nn.LSTM(3, 5, batch_first=True)
    x = torch.randn(2, 9, 3)

    def states(lstm: Any) -> Tensor:
        return torch.cat([torch.zeros(2, 1, 5), lstm(x)[0][:, :-1]], 1).flatten(0, 1)

    def see(site: Site, moments: Moments) -> None:
        assert torch.allclose(moments.hessian[0], states(model).T @ states(model), atol=1e-4)
        assert not moments.drift.abs().max() > 1e-5
        weight = site.layer.weight.clone()
        rounded: Any = copy.deepcopy(model)
        rounded.weight_hh_l0.copy_(4 * weight)
        own, full = states(rounded), states(model)
        of_rounded = site.moments(4 * weight)
        assert torch.allclose(of_rounded.hessian[0], own.T @ own, atol=1e-4)
        drift = weight @ (full - own).T @ own
        assert torch.allclose(of_rounded.drift[0], drift, atol=1e-4)

    visit(model, "weight_hh_l0", see, [x])


def test_what_the_weight_of_the_inputs_is_off_is_made_up_for_by_that_of_the_states() -> None:
    """Where a gate adds the products of both."""
    model: Any = nn.LSTM(3, 5, batch_first=True)
    x = torch.randn(2, 9, 3)

    def see(site: Site, _: Moments) -> None:
        quantized: Any = site.layer.module
        quantized.weight_ih_l0.mul_(0.5)
        moments = site.moments()
        own, full = (
            torch.cat([torch.zeros(2, 1, 5), one(x)[0][:, :-1]], 1).flatten(0, 1)
            for one in (quantized, model)
        )
        gates = 0.5 * model.weight_ih_l0 @ x.flatten(0, 1).T + site.layer.weight @ (full - own).T
        assert torch.allclose(moments.drift[0], gates @ own, atol=1e-4)

    visit(model, "weight_hh_l0", see, [x])


def test_a_layer_that_only_held_out_inputs_reach_is_solved_from_these() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plus = nn.Linear(2, 2)
            self.minus = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return self.plus(x) if x.sum() > 0 else self.minus(x)

    def see(_: Site, moments: Moments) -> None:
        assert moments.seen == 3

    visit(Branching(), "minus", see, [torch.ones(4, 2)], [-torch.ones(3, 2)])
