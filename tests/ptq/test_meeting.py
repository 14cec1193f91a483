"""The drift of a layer is taken from real outputs, and not where something else changes these."""

from typing import Any

import pytest
import torch
from tests.ptq.networks_of_others import Keeping
from torch import Tensor, nn

from octavo.network.forward import observing
from octavo.network.layers import find_layers
from octavo.network.stepping import Stop
from octavo.ptq.meeting import Meeting, moments_at


def met(full: nn.Module, quantized: nn.Module, x_full: Tensor, x: Tensor) -> list[Meeting]:
    """Both modules called with their own inputs."""
    beside = Stop(full, (x_full,), {}, full(x_full))
    return [Meeting(Stop(quantized, (x,), {}), beside)]


def pair(kind: Any, *sizes: int, **options: Any) -> tuple[Any, Any]:
    full, quantized = kind(*sizes, **options), kind(*sizes, **options)
    quantized.load_state_dict(full.state_dict())
    return full, quantized


@torch.no_grad()
def drift(full: nn.Module, quantized: nn.Module, x_full: Tensor, x: Tensor, index: int = 0) -> Any:
    layer = find_layers(quantized)[0][index]
    with observing(full), observing(quantized):
        return moments_at(layer, met(full, quantized, x_full, x)).drift


@torch.no_grad()
def test_the_drift_of_a_linear_layer_is_that_of_its_outputs() -> None:
    full, quantized = pair(nn.Linear, 4, 3)
    x_full, x = torch.randn(6, 4), torch.randn(6, 4)
    expected = full.weight @ (x_full - x).T @ x
    assert torch.allclose(drift(full, quantized, x_full, x)[0], expected, atol=1e-5)


def test_without_full_precision_beside_it_there_is_none() -> None:
    _, quantized = pair(nn.Linear, 4, 3)
    layer = find_layers(quantized)[0][0]
    with observing(quantized):
        moments = moments_at(layer, [Meeting(Stop(quantized, (torch.randn(6, 4),), {}), None)])
    assert moments.seen == 6
    assert not moments.drift.any()


@pytest.mark.parametrize("changes", [False, True])
def test_outputs_that_a_hook_changes_are_no_drift(changes: bool) -> None:
    full, quantized = pair(nn.Linear, 4, 3)
    for module in (full, quantized):
        module.register_forward_hook(lambda *_: None)  # as a pass has one, where it stops
        module.register_forward_hook(lambda _, __, output: 2 * output if changes else None)
    x_full, x = torch.randn(6, 4), torch.randn(6, 4)
    assert bool(drift(full, quantized, x_full, x).any()) is not changes


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_drift_of_a_recurrent_layers_inputs_is_that_of_its_products(kind: Any) -> None:
    full, quantized = pair(kind, 4, 3, batch_first=True)
    x_full, x = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    expected = full.weight_ih_l0 @ (x_full - x).flatten(0, 1).T @ x.flatten(0, 1)
    assert torch.allclose(drift(full, quantized, x_full, x)[0], expected, atol=1e-5)


@torch.no_grad()
def test_in_a_gru_the_products_of_states_and_inputs_stay_apart() -> None:
    full, quantized = pair(nn.GRU, 4, 3, batch_first=True)
    quantized.weight_ih_l0.mul_(0.5)
    x = torch.randn(2, 5, 4)
    own, states = (
        torch.cat([torch.zeros(2, 1, 3), one(x)[0][:, :-1]], 1).flatten(0, 1)
        for one in (quantized, full)
    )
    expected = full.weight_hh_l0 @ (states - own).T @ own
    assert torch.allclose(drift(full, quantized, x, x, 1)[0], expected, atol=1e-5)


def test_nothing_stays_on_a_module_whose_output_is_computed() -> None:
    module = Keeping(4, 3)
    kept: Any = torch.zeros(1)
    module.kept = kept
    x = torch.randn(6, 4)
    with observing(module):
        output = Meeting(Stop(module, (x,), {}), None).output()
    assert output.shape == (6, 3)
    assert module.kept is kept
