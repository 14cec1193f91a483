"""What the policy reads of each layer."""

import math

import numpy as np
import torch

from octavo.dnq.features import allowed_actions, features_of
from octavo.dnq.space import Action, Space

ACTIONS = (tuple(map(Action.parse, (2, 3, 4))), (Action.parse(4),))
SPACE = Space(("a", "b"), ACTIONS, (100, 7), (50, 0), traits=((1.5, 0.0), (2.5, 1.0)))
LOSSES = np.array([[0.5, 0.0, -1.0], [2.0, np.nan, np.nan]])


def test_columns_are_traits_depth_counts_and_losses() -> None:
    features = features_of(SPACE, LOSSES).double()
    floor = math.log(2e-6)  # for losses that have no logarithm
    expected = [
        [1.5, 0.0, 0.0, math.log(100), math.log(51), math.log(0.5), floor, floor],
        [2.5, 1.0, 1.0, math.log(7), 0.0, *[math.log(2.0)] * 3],  # its one action, repeated
    ]
    assert torch.allclose(features, torch.tensor(expected, dtype=torch.float64), atol=1e-5)


def test_a_layer_has_as_many_actions_as_the_space_says() -> None:
    assert allowed_actions(SPACE).tolist() == [[True, True, True], [True, False, False]]
