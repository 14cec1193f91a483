"""The measurement on held-out inputs: when a divergence is large, and how it is told."""

from dataclasses import FrozenInstanceError

import pytest

from octavo.storage.held_out import HeldOut


@pytest.mark.parametrize(
    ("divergence", "constant", "large"),
    [
        (0.2, 2.1, False),  # less than a tenth of what a constant loses
        (0.22, 2.1, True),
        (0.019, 0.02, False),  # negligible, although it is most of it
        (0.021, 0.02, True),
        (0.021, 0.0, True),  # a network whose outputs do not depend on its inputs
        (None, None, False),
    ],
)
def test_a_divergence_is_large_beside_a_constant_output(
    divergence: float | None, constant: float | None, large: bool
) -> None:
    assert HeldOut(8, divergence, constant=constant).is_large is large


def test_the_share_that_is_lost() -> None:
    assert HeldOut(8, 0.5, constant=2.0).lost == 0.25
    assert HeldOut(8, 0.5, constant=0.0).lost is None
    assert HeldOut().lost is None


def test_it_says_what_was_measured_and_what_was_not() -> None:
    assert str(HeldOut()) == "not measured: too few inputs to set some aside"
    assert str(HeldOut(8)) == "not measured: the outputs cannot be compared"
    assert str(HeldOut(8, 0.5, constant=2.0)) == (
        "divergence 0.5 on 8 held-out samples (25.0% of the outputs' information lost)"
    )


def test_it_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        HeldOut().samples = 1  # type: ignore[misc]
