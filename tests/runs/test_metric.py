"""The metric as people read it: shares and losses keep the digits in which networks differ."""

import pytest

from octavo.runs.metric import metric_change, metric_text


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
