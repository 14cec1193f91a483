"""Each width has the codebook of its name, and one function fits them all."""

import pytest
import torch

from octavo.formats.level_table import TableCodebook
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.formats.registry import CODEBOOKS, codebook_at, fitted_codebook, with_exponents
from octavo.formats.width import BITS, Apot, Width, WidthLike, read_width

ALL = [Width(bits, name) for name, possible in BITS.items() for bits in possible]


@pytest.mark.parametrize(
    ("width", "kind"), [(6, PowerOfTwo), (Apot(6), TableCodebook), ("fp4", TableCodebook)]
)
def test_each_width_has_the_codebook_of_its_name(width: WidthLike, kind: type) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    found = fitted_codebook(weight, width, fit="mse", per="channel")
    for one in (found, with_exponents(found, found.max_exponent)):
        assert (type(one), one.width) == (kind, read_width(width))
        assert torch.equal(one.project(weight), found.project(weight))


def test_powers_of_two_have_a_function_of_their_own_that_does_the_same() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    importance = torch.arange(40.0)
    found = fitted_codebook(weight, 6, fit="mse", per="channel", importance=importance)
    expected = power_of_two(weight, 6, fit="mse", per="channel", importance=importance)
    assert torch.equal(found.max_exponent, expected.max_exponent)


@pytest.mark.parametrize("width", ALL, ids=str)
def test_each_width_has_as_many_levels_as_it_says(width: Width) -> None:
    assert list(CODEBOOKS) == list(BITS)
    codebook = codebook_at(width, torch.tensor(0))
    assert codebook.width == width
    assert len(codebook.unit_levels()) == width.level_count == 2 * codebook.zero + 1
