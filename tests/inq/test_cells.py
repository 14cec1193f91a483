"""The cells of levels once bits count, against the cheapest level by force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.formats.registry import fitted_codebook
from octavo.inq.cells import priced_edges, worth_of
from octavo.ptq.rounding import bits_of_codes

WIDTHS = (2, 3, 4, 5, "apot5", "fp4", "int8")


@given(
    width=st.sampled_from(WIDTHS),
    seed=st.integers(0, 999),
    rate=st.sampled_from([0.0, 0.1, 1.0, 10.0, 100.0]),
    few=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_weight_is_in_the_cell_of_its_cheapest_level(
    width: int | str, seed: int, rate: float, few: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 5 if few else 200, generator=generator)
    codebook = fitted_codebook(weight, width, fit="mse", per="tensor")
    codes = codebook.encode(weight)
    worth = worth_of(rate, codebook, codes)
    levels = codebook.unit_levels().double()
    bits = bits_of_codes(codes, len(levels))
    edges = priced_edges(codebook, codes, worth)
    assert bool((edges[1:] >= edges[:-1]).all())

    in_units = torch.linspace(-3, 3, 1501)
    cost = (in_units.double().unsqueeze(1) - levels).square() + worth * bits
    found = torch.bucketize(in_units, edges, right=True)
    own = cost.gather(1, found.unsqueeze(1)).squeeze(1)
    assert torch.allclose(own, cost.min(1).values, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_bit_is_worth_the_rate_times_the_error(width: int | str) -> None:
    """The error of the weights themselves, or of the same weights once they were rounded, which
    have none: up to a factor, and less where weights lie beyond the largest level."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    codebook = fitted_codebook(weight, width, fit="mse", per="channel")
    scale = 2.0 ** codebook.max_exponent.view(-1, 1)
    error = float(((weight - codebook.project(weight)) / scale).square().mean())
    worth = worth_of(8.0, codebook, codebook.encode(weight))
    assert worth == worth_of(8.0, codebook, codebook.encode(codebook.project(weight)))
    assert 0.35 * error < worth / 2 < 1.7 * error  # a quarter of the price counts
    assert worth_of(0.0, codebook, codebook.encode(weight)) == 0
    assert worth_of(8.0, codebook, codebook.encode(weight)[:0]) == 0
