"""The codebook of a width is that of its grid."""

from typing import Any

import pytest
import torch

from octavo.additive import AdditivePowers, additive_powers
from octavo.codebook import PowerOfTwo, power_of_two
from octavo.grids import codebook_at, fitted_codebook
from octavo.widths import Apot


@pytest.mark.parametrize(("width", "kind", "make"), [(6, PowerOfTwo, power_of_two), (Apot(6), AdditivePowers, additive_powers)])
def test_each_width_has_the_codebook_of_its_grid(width: int, kind: Any, make: Any) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    importance = torch.arange(40.0)
    found = fitted_codebook(weight, width, fit="mse", per="channel", importance=importance)
    expected = make(weight, width, fit="mse", per="channel", importance=importance)
    for one in (found, codebook_at(width, expected.top)):
        assert (type(one), one.bits) == (kind, width)
        assert torch.equal(one.top, expected.top)
        assert torch.equal(one.project(weight), expected.project(weight))
