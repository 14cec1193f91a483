"""A layer gets the solution that keeps the real outputs of its module best; nearest levels are
among them, so a network is never worse than with these."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.ptq.networks_of_others import KINDS, Masked, Scaled, Standardized, made
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.formats.registry import fitted_codebook
from octavo.network.layers import find_layers
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.site import Site

FRESH = torch.randn(512, 16, generator=torch.Generator().manual_seed(99))


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """The network in which every weight takes its nearest level."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer in find_layers(twin)[0]:
            book = fitted_codebook(layer.weight, bits, fit="mse", per="channel", name=layer.name)
            layer.weight.copy_(book.decode(book.encode(layer.weight)))
    return twin


@torch.no_grad()
def error(model: nn.Module, other: nn.Module, x: Tensor = FRESH) -> float:
    """Relative error of the outputs, both with the same random numbers."""
    torch.manual_seed(5)
    full = model(x)
    torch.manual_seed(5)
    return float((other(x) - full).norm() / full.norm())


def length(layer: nn.Linear) -> float:
    return float(layer.weight.detach().norm())


def calibrated(model: nn.Module, bits: int, inputs: list[Tensor], **options: Any) -> Any:
    """The quantized network, and its packed form; networks without training warn often."""
    twin = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        packed = calibrate(model, Plan.uniform(model, bits), inputs, **options)
    packed.apply(twin)
    return twin, packed


@pytest.mark.parametrize("kind", [Standardized, Scaled, Masked, nn.Linear])
@pytest.mark.parametrize("count", [64, 256])
def test_a_weight_that_is_not_what_is_multiplied(kind: type[nn.Linear], count: int) -> None:
    """Drift would make a standardized weight longer, which changes nothing but its rounding."""
    model = made(kind)
    inputs = [torch.randn(count, 16, generator=torch.Generator().manual_seed(1))]
    twin, _ = calibrated(model, 3, inputs)
    assert error(model, twin) <= (0.95 if count > 64 else 1) * error(model, rounded(model, 3))
    assert 0.8 < length(twin.second) / length(model.second) < 1.25


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 1000),
    st.sampled_from([2, 3, 4]),
    st.sampled_from([64, 100, 200]),
    st.sampled_from([5, 16, 40]),
    st.booleans(),
)
def test_never_worse_than_nearest_levels_end_to_end(
    kind: type[nn.Linear], seed: int, bits: int, count: int, width: int, sequential: bool
) -> None:
    """On the inputs that were set aside it holds exactly, on others but for their chance."""
    model = made(kind, seed, width)
    inputs = [torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))]
    assume(math.isfinite(error(model, rounded(model, bits))))  # rows of equal levels deviate by 0
    twin, packed = calibrated(model, bits, inputs, sequential=sequential)
    held_out = packed.held_out
    assert held_out.samples == len(range(7, count, 8))
    assert held_out.divergence <= held_out.nearest
    assert error(model, twin) < 1.25 * error(model, rounded(model, bits))


def constant_rows(seed: int) -> tuple[Any, list[Tensor]]:
    """A standardized layer, one of whose rows is all zero at the nearest levels of 2 bits: it is
    divided by a deviation of 0.
    """
    model = made(Standardized, seed, 5)
    inputs = [torch.randn(200, 16, generator=torch.Generator().manual_seed(seed))]
    assert math.isnan(error(model, rounded(model, 2)))
    return model, inputs


def test_a_solution_with_outputs_that_are_not_finite_is_not_chosen() -> None:
    model, inputs = constant_rows(30)
    twin, packed = calibrated(model, 2, inputs)
    assert error(model, twin) < 0.6
    assert packed.held_out.nearest == math.inf


def test_a_layer_that_no_solution_keeps_finite_is_named() -> None:
    model, inputs = constant_rows(4)
    with pytest.raises(PlanError, match=r"^second: with its weight quantized .* give it more bits"):
        calibrated(model, 2, inputs)


def test_where_nothing_was_set_aside_only_layers_that_need_it_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []

    def note(site: Site, _: Tensor) -> float:
        measured.append(site.layer.name)
        return 0.0

    monkeypatch.setattr("octavo.ptq.site.Site.error", note)
    calibrated(made(Standardized), 3, [torch.randn(40, 16)])
    assert set(measured) == {"second"}
    calibrated(made(nn.Linear), 3, [torch.randn(64, 16)])
    assert set(measured) == {"first", "second", "third"}


def test_a_hook_that_changes_outputs_is_no_drift() -> None:
    model = made(nn.Linear)
    model.second.register_forward_hook(lambda _, __, output: 2 * output)
    twin, _ = calibrated(model, 3, [torch.randn(256, 16)])
    assert error(model, twin) < error(model, rounded(model, 3))
    assert 0.8 < length(twin.second) / length(model.second) < 1.25
