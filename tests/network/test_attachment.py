"""Parametrizations of octavo's own are told from those of the user."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from octavo.network.attachment import attach_to, is_attached, restore_module


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_only_what_was_attached_is_ours_and_is_taken_off() -> None:
    module = nn.Linear(3, 2)
    parametrize.register_parametrization(module, "bias", Twice())
    kind = type(module)
    names = [name for name, _ in module.named_parameters()]
    weight = module.weight
    attach_to(module, "weight", Twice())
    assert [is_attached(module, name) for name in ("weight", "bias")] == [True, False]
    assert torch.equal(module.weight, 2 * weight)
    restore_module(module)
    assert not is_attached(module, "weight")
    assert module.weight is weight
    assert type(module) is kind
    assert [name for name, _ in module.named_parameters()] == names


def test_a_recurrent_module_keeps_no_hook() -> None:
    module = nn.LSTM(3, 4)
    attach_to(module, "weight_hh_l0", Twice())
    restore_module(module)
    assert not module._forward_pre_hooks
    assert not module._forward_hooks
    assert module._flat_weights == [getattr(module, name) for name in module._flat_weights_names]
