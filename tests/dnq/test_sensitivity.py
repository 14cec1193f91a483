"""The choices of single layers, and the table of what they lose."""

import numpy as np

from octavo.dnq.sensitivity import loss_table, single_layer_choices
from octavo.dnq.space import Action

ACTIONS = (tuple(map(Action.parse, (2, 3))), (Action.parse(4),))


def test_each_choice_quantizes_one_layer_by_one_of_its_actions() -> None:
    assert single_layer_choices(ACTIONS) == {
        (0, 0): (0, None),
        (0, 1): (1, None),
        (1, 0): (None, 0),
    }


def test_losses_stand_by_layer_and_action_and_nothing_where_there_is_none() -> None:
    table = loss_table(ACTIONS, [0.5, 0.25, 2.0])
    assert np.array_equal(table, [[0.5, 0.25], [2.0, np.nan]], equal_nan=True)
