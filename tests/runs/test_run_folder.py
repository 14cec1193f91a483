"""What a run leaves in its folder; most of it is tested by running."""

import pytest
import torch
from torch import nn

from octavo.errors import PlanError
from octavo.runs.run_folder import digest_of


def net(bias: bool = False) -> nn.Module:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 2, 3, bias=bias))
    model.add_module("norm", nn.BatchNorm2d(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
        model.get_parameter("conv.weight").view(-1)[1] = 2.0
    return model


def test_the_digest_is_the_same_for_the_same_state_however_it_lies_in_memory() -> None:
    other = nn.ModuleDict(
        {"norm": net().get_submodule("norm"), "conv": net().get_submodule("conv")}
    )
    other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # left out of torch's stubs
    assert digest_of(other) == digest_of(net())


def test_the_digest_sees_every_weight_and_buffer_and_its_name() -> None:
    moved, counted, renamed, swapped = net(), net(), nn.Sequential(), net()
    with torch.no_grad():
        moved.get_parameter("norm.bias")[1] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
        swapped.get_parameter("conv.weight").copy_(net().get_parameter("conv.weight").flip(0))
    counted.get_buffer("norm.num_batches_tracked").add_(1)
    renamed.add_module("conv1", net().get_submodule("conv"))
    renamed.add_module("norm", net().get_submodule("norm"))
    assert (
        len(
            {
                digest_of(model)
                for model in (net(), net(bias=True), moved, counted, renamed, swapped)
            }
        )
        == 6
    )


def test_a_state_that_is_no_tensor_has_no_digest() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"version": 1}

    with pytest.raises(
        PlanError,
        match=r"^_extra_state: expected a tensor of a plain type in the state dict, got dict$",
    ):
        digest_of(Extra(2, 2))
