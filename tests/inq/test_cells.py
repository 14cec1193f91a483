"""The cells of levels once bits count, against the cheapest level by force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.formats.registry import fitted_codebook
from octavo.inq.cells import priced_codes, priced_edges, worth_of
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
    worth = worth_of(rate, codebook.width, weight / 2.0**codebook.max_exponent)
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
def test_a_bit_is_worth_the_rate_times_the_error_whatever_the_exponents(width: int | str) -> None:
    """Weights that were rounded to these levels, and coarser levels, change little."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    codebook = fitted_codebook(weight, width, fit="mse", per="tensor")
    scale = 2.0 ** float(codebook.max_exponent)
    error = float((weight - codebook.project(weight)).square().mean())
    for one in (weight, codebook.project(weight)):
        for coarser in (1, 4):
            worth = worth_of(8.0, codebook.width, one / (coarser * scale))
            worth *= (coarser * scale) ** 2  # a quarter of the price counts
            assert 0.55 < worth / (2 * error) < 1.25
    assert worth_of(0.0, codebook.width, weight) == 0
    assert worth_of(8.0, codebook.width, weight[:0]) == 0


def test_columns_whose_errors_cost_more_take_nearer_levels() -> None:
    weight = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0))
    codebook = fitted_codebook(weight.flatten(0, 1), "apot5", fit="mse", per="tensor")
    in_units = weight / 2.0**codebook.max_exponent
    nearest = codebook.encode(weight.flatten(0, 1)).view(weight.shape)
    worth = worth_of(20.0, codebook.width, in_units)
    even = priced_codes(in_units, torch.full((2, 40), 7.0), codebook, nearest, worth)
    edges = priced_edges(codebook, nearest, worth)
    assert torch.equal(even.long(), torch.bucketize(in_units, edges, right=True))

    curvature = torch.linspace(0.01, 3, 40).expand(2, 40)
    codes = priced_codes(in_units, curvature, codebook, nearest, worth)
    levels = codebook.unit_levels()
    bits = bits_of_codes(nearest, len(levels))
    share = (curvature / curvature.mean()).view(2, 1, 40, 1)
    cost = share * (in_units.unsqueeze(3) - levels).square() + worth * bits
    own = cost.gather(3, codes.long().unsqueeze(3)).squeeze(3)
    assert torch.allclose(own, cost.min(3).values, atol=1e-5)
    zero = (codes == codebook.zero).double().mean((0, 1))
    assert zero[:10].mean() > 2 * zero[30:].mean()
