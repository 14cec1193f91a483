"""The form fp8: every kind of layer at every number of bits."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("shift", range(4))
def test_every_kind_of_layer_at_every_number_of_bits(
    shift: int, per: str, check_zoo: Callable[..., None]
) -> None:
    """Over the shifts, each layer has each of 2 to 5 bits. The export itself compares all weights,
    bit for bit."""
    check_zoo("fp8", shift, per)


def test_other_codebooks_and_groups_of_inputs(check_zoo: Callable[..., None]) -> None:
    check_zoo("fp8", 0, ("group", 5), ("fp4", "fp6", 3, "fp8"))
