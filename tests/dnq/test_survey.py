"""What there is to search: layers in forward order, with what tells them apart."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo import PlanError
from octavo.dnq.survey import default_options, survey
from octavo.network.layers import find_layers


class Net(nn.Module):
    """Registered in another order than it runs; one layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(4, 8, 2, groups=2)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.up(self.stem(x)).mean((2, 3)))
        return y


def test_layers_come_as_inputs_reach_them_with_their_counts() -> None:
    space = survey(Net(), torch.zeros(5, 2, 4, 4), (2, 3), {"up": 4})
    assert space.names == ("stem", "up", "head")
    texts = [[str(action) for action in actions] for actions in space.actions]
    assert texts == [["2", "3"], ["4"], ["2", "3"]]
    assert space.weights == (4 * 2 * 9, 4 * 4 * 4, 8 * 3)
    assert space.macs == (4 * 2 * 9 * 16, 4 * 4 * 4 * 16, 8 * 3)  # of one input of the batch


@pytest.mark.parametrize("inputs", [{"x": torch.zeros(5, 2, 4, 4)}, (torch.zeros(5, 2, 4, 4),)])
def test_multiply_accumulates_are_those_of_one_input_however_a_batch_is_passed(inputs: Any) -> None:
    expected = survey(Net(), torch.zeros(5, 2, 4, 4), (2, 3), {})
    assert survey(Net(), inputs, (2, 3), {}).macs == expected.macs


def test_an_image_that_comes_without_a_batch_is_one_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    alone = survey(model, torch.zeros(3, 8, 8), (2, 3), {})
    assert alone.macs == survey(model, torch.zeros(7, 3, 8, 8), (2, 3), {}).macs


def test_a_model_that_inputs_reach_no_layer_of_is_refused() -> None:
    class Idle(Net):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(
        PlanError, match=r"^Idle: expected a model .* found none that inputs reach$"
    ):
        survey(Idle(), torch.zeros(1, 2, 4, 4), (2,), {})


@pytest.mark.parametrize(
    ("network", "finer"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(3, 4)), False),
        (nn.ModuleDict({"up": nn.ConvTranspose1d(2, 3, 3)}), False),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.GRU(3, 4)), True),
        (nn.LSTMCell(3, 4), True),
        (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)), True),
        (nn.MultiheadAttention(4, 2), True),
        (nn.ModuleDict({"self_attn": nn.ModuleDict({"qkv": nn.Linear(4, 12)})}), True),
    ],
)
def test_transformers_and_recurrent_networks_get_finer_options(
    network: nn.Module, finer: bool
) -> None:
    options = default_options(find_layers(network)[0])
    assert options == ((2, 3, 4, "fp4", "fp6", "int8") if finer else (2, 3, 4, 5))


def test_an_action_of_each_codebook_has_its_place() -> None:
    """Actions of as many bits are sorted by their codebook, whatever the order of the options."""
    options = ("int8", "fp6", 4, "apot6", "fp4", 6)
    space = survey(Net(), torch.zeros(5, 2, 4, 4), options, {})
    texts = [str(action) for action in space.actions[0]]
    assert texts == ["4", "fp4", "6", "apot6", "fp6", "int8"]


def test_a_network_with_an_attention_is_searched_among_the_finer_options() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    space = survey(model, torch.zeros(2, 3, dtype=torch.long), None, {})
    assert [str(action) for action in space.actions[1]] == ["2", "3", "4", "fp4", "fp6", "int8"]
