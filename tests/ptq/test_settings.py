"""The settings of PTQ: their defaults have one home, and they check themselves."""

import inspect
import math
from dataclasses import asdict
from typing import Any

import pytest

from octavo.errors import PlanError
from octavo.ptq.calibration import calibrate
from octavo.ptq.settings import PtqSettings


def test_the_defaults() -> None:
    assert asdict(PtqSettings()) == {
        "order": "gptq",
        "fit": "mse",
        "per": "channel",
        "damp": 0.01,
        "sequential": True,
        "absorb": False,
        "rate": 0.0,
        "budget": None,
        "masks": None,
    }


def test_calibrate_has_the_same_defaults() -> None:
    parameters = inspect.signature(calibrate).parameters
    found = {name: parameters[name].default for name in asdict(PtqSettings())}
    assert found == asdict(PtqSettings())


@pytest.mark.parametrize("damp", [-0.01, math.nan, math.inf, True, "0.01", None])
def test_a_damping_or_a_rate_that_is_none_is_refused(damp: Any) -> None:
    with pytest.raises(PlanError, match="damp: expected a number of at least 0, got"):
        PtqSettings(damp=damp)
    with pytest.raises(PlanError, match="rate: expected a number of at least 0, got"):
        PtqSettings(rate=damp)


@pytest.mark.parametrize("order", ["far", "random", None])
def test_an_unknown_order_is_refused(order: Any) -> None:
    known = "gptq, distance, magnitude"
    with pytest.raises(PlanError, match=f"order: expected one of {known}, got {order!r}"):
        PtqSettings(order=order)
