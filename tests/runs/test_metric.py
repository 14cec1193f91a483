"""The metric as people read it: shares and losses keep the digits in which networks differ."""

import re
from typing import Any

import pytest
import torch
from tests.runs.toy_task import Toy, linear
from torch import nn

from octavo.errors import RecipeError
from octavo.runs.metric import metric_change, metric_of, metric_text


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (91.726, "91.73"),
        (100.0, "100.00"),
        (1234.5, "1234.50"),
        (0.0, "0.00"),
        (9.5312, "9.531"),
        (0.91726, "0.9173"),
        (-0.029754, "-0.02975"),
        (1e-20, "0.000000000"),
    ],
)
def test_a_metric_has_four_digits(metric: float, text: str) -> None:
    assert metric_text(metric) == text


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (91.73, 91.5, "fell by 0.23"),
        (91.73, 91.733, "is the same"),
        (0.9173, 0.9150, "fell by 0.0023"),  # the share that 91.73 % is
        (-0.0298, -0.0371, "fell by 0.00730"),
        (0.0, 0.25, "rose by 0.25"),
        (-1e-300, 1e-300, "is the same"),
    ],
)
def test_a_change_has_the_digits_of_the_metric(before: float, after: float, words: str) -> None:
    assert metric_change(before, after) == words


class Scored(Toy):
    """A task whose metric the test chooses."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.metric = metric

    def score(self, model: nn.Module) -> Any:
        return self.metric


@pytest.mark.parametrize("metric", [float("nan"), float("inf"), "much", None, [0.5]])
def test_a_metric_that_is_no_finite_number(metric: Any) -> None:
    expected = f"task 'mine': expected a finite number from its score(), the metric, got {metric!r}"
    said = re.escape(f"{expected} for the network; return a float, where higher is better")
    with pytest.raises(RecipeError, match=rf"^{said}$"):
        metric_of(Scored(metric), "mine", linear(0), "the network")


def test_a_network_whose_weights_are_not_finite_is_blamed_and_not_its_metric() -> None:
    model = nn.Sequential(linear(0), nn.BatchNorm1d(3))
    model[1].running_var[1] = torch.inf  # type: ignore[operator]
    said = (
        "for the network; its 1.running_var holds numbers that are not finite: load sound weights"
    )
    with pytest.raises(RecipeError, match=said):
        metric_of(Scored(float("nan")), "mine", model, "the network")
    assert metric_of(Scored(0.5), "mine", model, "the network") == 0.5
