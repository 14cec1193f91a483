"""What there is to search: layers in forward order, with what tells them apart."""

import pytest
import torch
from torch import Tensor, nn

from octavo import PlanError
from octavo.dnq.survey import survey


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


def test_a_model_that_inputs_reach_no_layer_of_is_refused() -> None:
    class Idle(Net):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(
        PlanError, match=r"^Idle: expected a model .* found none that inputs reach$"
    ):
        survey(Idle(), torch.zeros(1, 2, 4, 4), (2,), {})
