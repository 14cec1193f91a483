"""The codebook of a width is that of its grid."""

from typing import Any

import pytest
import torch

from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.sums_of_powers import AdditivePowers, additive_powers
from octavo.formats.width import Apot, WidthLike, read_width


@pytest.mark.parametrize(
    ("width", "kind", "make"),
    [(6, PowerOfTwo, power_of_two), (Apot(6), AdditivePowers, additive_powers)],
)
def test_each_width_has_the_codebook_of_its_grid(width: WidthLike, kind: Any, make: Any) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    importance = torch.arange(40.0)
    found = fitted_codebook(weight, width, fit="mse", per="channel", importance=importance)
    expected = make(weight, width, fit="mse", per="channel", importance=importance)
    for one in (found, codebook_at(width, expected.max_exponent)):
        assert (type(one), one.width) == (kind, read_width(width))
        assert torch.equal(one.max_exponent, expected.max_exponent)
        assert torch.equal(one.project(weight), expected.project(weight))
