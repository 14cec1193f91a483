"""Errors of a recurrent layer's states feed back, so its weights are chosen by whole passes."""

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.ptq.recurrent_networks import accuracy, digits, trained
from torch import nn

from octavo.network.moments import Moments
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate

INPUTS = list(digits(512, 10_000)[0].split(64))


def quantized(bits: dict[str, Any] | Plan) -> tuple[float, list[str], Any]:
    """Accuracy, warnings, and the measurement on held-out inputs."""
    model = trained()
    twin = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed = calibrate(model, bits, INPUTS)
    packed.apply(twin)
    return accuracy(twin), [str(one.message) for one in caught], packed.held_out


@pytest.mark.parametrize("bits", [3, 4])
def test_an_lstm_stays_within_two_points(bits: int) -> None:
    before = accuracy(trained())
    assert before > 0.99
    after, messages, held_out = quantized(Plan.uniform(trained(), bits))
    assert after > before - 0.02
    assert not messages
    assert held_out.divergence < held_out.nearest


def test_what_cannot_be_held_is_said_with_the_layers_name() -> None:
    """At 2 bits the states are lost; the plan in the result repairs it."""
    after, (message,), held_out = quantized(Plan.uniform(trained(), 2))
    assert after < 0.9
    assert "far from full precision" in message
    assert held_out.is_large
    assert held_out.costly[0][0] == "lstm.weight_hh_l0"
    assert message.index("lstm.weight_hh_l0") < message.index("head")
    repaired, messages, _ = quantized(held_out.repair)
    assert not messages
    assert repaired > 0.98


@pytest.mark.parametrize(("bits", "lost"), [(2, True), (3, False), (4, False)])
def test_of_few_inputs_too_what_cannot_be_held_is_said(bits: int, lost: bool) -> None:
    """Nothing is set aside, so the layer is measured by itself."""
    model = trained()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed = calibrate(model, Plan.uniform(model, bits), [digits(48, 10_000)[0]])
    assert packed.held_out is not None
    assert packed.held_out.samples == 0
    assert [name for name, _ in packed.held_out.lost_states] == ["lstm.weight_hh_l0"] * lost
    assert ["lstm.weight_hh_l0" in str(one.message) for one in caught] == [True] * lost
    assert all(one.filename == __file__ for one in caught)


def test_a_recurrent_weight_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solved for one step, its own states are never seen: then the network is much further off."""
    plan = {"lstm.weight_hh_l0": 2}
    held_out = quantized(plan)[2]

    def for_one_step(_layer: Any, moments: Moments, _site: Any, solve: Any) -> Any:
        return solve(moments.without_drift())

    monkeypatch.setattr("octavo.ptq.freezer.choose", for_one_step)
    assert held_out.divergence < quantized(plan)[2].divergence / 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_outputs_of_every_kind_are_nearer_than_by_nearest_levels(
    kind: Any, options: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    model = kind(6, 10, batch_first=True, **options)
    packed = calibrate(model, Plan.uniform(model, 3), [torch.randn(4, 12, 6) for _ in range(16)])
    assert packed.held_out is not None
    assert packed.held_out.samples == 2  # batches: states have their samples along dimension 1
    assert packed.held_out.divergence is not None
    assert packed.held_out.nearest is not None
    assert packed.held_out.divergence < packed.held_out.nearest
