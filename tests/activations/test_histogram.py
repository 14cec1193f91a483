"""Histograms: what numpy says of all the values at once, whatever order and size they came in."""

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.activations.histogram import BINS, Histogram


def counted(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def growing() -> list[Tensor]:
    """Batches whose range grows a thousandfold on the way."""
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(41, 53, generator=generator) for scale in (0.004, 0.1, 3.0, 1.0)]


def test_the_counts_are_numpys_of_all_values_at_once() -> None:
    histogram, values = counted(*growing()), torch.cat(growing()).double().numpy()
    expected, edges = np.histogram(values, BINS, (-histogram.reach, histogram.reach))
    assert histogram.reach == 2 ** np.ceil(np.log2(np.abs(values).max()))
    moved = np.abs(
        np.cumsum(histogram.counts.numpy()) - np.cumsum(expected)
    ).max()  # values at an edge may fall on either side
    assert histogram.counts.sum() == values.size
    assert moved <= 2
    assert np.allclose(histogram.centers.numpy(), (edges[:-1] + edges[1:]) / 2)
    assert (histogram.lowest, histogram.highest) == (values.min(), values.max())


@pytest.mark.parametrize("percent", [0.1, 50, 99, 99.9, 100])
@pytest.mark.parametrize("form", [torch.abs, torch.relu, torch.neg, torch.exp])
def test_percentiles_of_the_magnitudes_are_numpys_to_a_bins_width(
    percent: float, form: object
) -> None:
    batches = [form(batch) for batch in growing()]  # type: ignore[operator]
    histogram = counted(*batches)
    expected = np.percentile(
        torch.cat(batches).abs().double().numpy(), percent, method="inverted_cdf"
    )
    assert abs(histogram.percentile(percent) - expected) <= histogram.width


def test_the_largest_value_is_the_last_percentile_exactly() -> None:
    assert counted(torch.tensor([-0.7, 0.3])).percentile(100) == pytest.approx(0.7, abs=1e-7)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 7), (-4, 3)])
def test_the_squared_error_is_that_of_rounding_every_value(lowest: int, highest: int) -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scales = torch.tensor([0.05, 0.2, 0.9])
    expected = [
        sum((v - min(max(round(v / s), lowest), highest) * s) ** 2 for v in values.tolist())
        for s in scales.double().tolist()
    ]
    assert torch.allclose(
        counted(values).squared_error(scales, lowest, highest),
        torch.tensor(expected, dtype=torch.float64),
        rtol=2e-3,
    )


def test_more_equal_values_than_float32_can_count_are_counted() -> None:
    many = (1 << 24) + 5
    histogram = counted(torch.zeros(1).expand(many))
    assert histogram.counts.sum() == many


def test_nothing_and_zeros_leave_the_range_as_it_is() -> None:
    histogram = counted(torch.empty(0, 3), torch.zeros(4))
    assert (histogram.counts.sum().item(), histogram.lowest, histogram.highest) == (4, 0, 0)
    assert histogram.percentile(100) == 0
