"""The settings of retraining are numbers that make sense."""

import math

import pytest

from octavo.runs.retraining import Retraining


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("clip", -1.0),
        ("temperature", 0.0),
        ("momentum", 1.5),
        ("momentum", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("labels", 1.1),
        ("labels", -0.1),
    ],
)
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: expected a .*, got {value}$"):
        Retraining(**{setting: value})  # type: ignore[arg-type]
