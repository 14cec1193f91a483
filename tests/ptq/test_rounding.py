"""Levels with a scale for each weight: in units of the scale, the problem is one without scales.
Codes with a price: the level of least error and price, by all levels."""

from typing import Any

import pytest
import torch
from torch import Tensor

import octavo.ptq.gptq
from octavo.ptq.compensation import compensate
from octavo.ptq.gptq import gptq
from octavo.ptq.rounding import Prices, Rounding

LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """One row of weights, the moment of its inputs, and a scale for each weight, float64."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1, 12, 40, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 1, 12, generator=generator, dtype=torch.float64)
    exponent = torch.randint(-3, 3, (1, 1, 12), generator=generator)
    scale = 2.0 ** exponent.double()
    return weight * scale, X @ X.mT, scale


def in_units(hessian: Tensor, scale: Tensor) -> Tensor:
    """The moment of inputs that are multiplied with the scales of their weights."""
    return hessian * scale * scale.mT


def test_a_weight_takes_the_nearest_of_its_own_levels() -> None:
    weight = torch.tensor([[[0.3, 0.3, -5.0]]], dtype=torch.float64)
    rounding = Rounding(LEVELS, torch.tensor([[[1.0, 0.25, 4.0]]], dtype=torch.float64))
    codes = rounding(weight)
    assert rounding.level(codes).tolist() == [[[0.5, 0.25, -4.0]]]
    assert Rounding(LEVELS).level(codes).tolist() == [[[0.5, 1.0, -1.0]]]


def test_gptq(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, scale = problem()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).unsqueeze(0)
    monkeypatch.setattr(octavo.ptq.gptq, "column_order", lambda _: order)
    found = gptq(weight, hessian, Rounding(LEVELS, scale))
    expected = gptq(weight / scale, in_units(hessian, scale), Rounding(LEVELS))
    assert torch.equal(found.codes, expected.codes)
    assert found.output_error.allclose(expected.output_error)
    error = weight - Rounding(LEVELS, scale).level(found.codes.long())
    assert found.weight_error.allclose(error.square().sum(2))


@pytest.mark.parametrize("pruned", [False, True])
def test_obq_by_distance_which_is_the_same_in_all_units(pruned: bool) -> None:
    weight, hessian, scale = problem()
    kept: Any = None
    if pruned:
        kept = torch.ones_like(weight, dtype=torch.bool)
        kept[..., ::5] = False
        weight = weight * kept
    found = compensate(weight, hessian, Rounding(LEVELS, scale), "distance", kept=kept)
    units = in_units(hessian, scale)
    expected = compensate(weight / scale, units, Rounding(LEVELS), "distance", kept=kept)
    assert torch.equal(found.codes, expected.codes)
    assert found.output_error.allclose(expected.output_error)


def test_several_rows_of_which_some_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, scale = problem()
    order = torch.arange(12).unsqueeze(0)
    monkeypatch.setattr(octavo.ptq.gptq, "column_order", lambda _: order)
    rows = torch.cat([weight, weight.flip(2), 0.5 * weight], 1)
    scales = torch.cat([scale, scale.flip(2), scale], 1)
    kept = torch.ones_like(rows, dtype=torch.bool)
    kept[0, 1, :4] = False
    found = gptq(rows * kept, hessian, Rounding(LEVELS, scales), kept)
    for row in range(3):
        at = torch.tensor([row])
        alone = gptq(
            (rows * kept)[:, at] / scales[:, at],
            in_units(hessian, scales[:, at]),
            Rounding(LEVELS),
            kept[:, at],
        )
        if row != 1:  # alone, a row leaves out what it has lost; here descent follows instead
            assert torch.equal(found.codes[:, at], alone.codes)
    assert not LEVELS[found.codes.long()][~kept].any()
    error = rows * kept - Rounding(LEVELS, scales).level(found.codes.long())
    assert found.output_error.allclose(((error @ hessian) * error).sum(2))


# Prices.


@pytest.mark.parametrize("scaled", [False, True])
def test_the_level_of_least_error_and_price(scaled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64)
    curvature = torch.rand(2, 1, 40, generator=generator, dtype=torch.float64) + 0.1
    scale = 1 + torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    prices = Prices(
        torch.tensor([4.0, 2.0, 0.5, 2.5, 5.0], dtype=torch.float64),
        torch.rand(2, 3, 1, generator=generator, dtype=torch.float64) / 10,
    )
    rounding = Rounding(LEVELS, scale if scaled else None, prices)
    codes = rounding(weight, curvature)
    levels = LEVELS * (scale if scaled else torch.ones_like(scale)).unsqueeze(3)
    cost = curvature.unsqueeze(3) * (weight.unsqueeze(3) - levels).square()
    cost = cost + prices.price.unsqueeze(3) * prices.bits
    assert torch.equal(codes, cost.argmin(3))
    assert not torch.equal(codes, Rounding(LEVELS, rounding.scale)(weight, curvature))
    if not scaled:
        assert torch.equal(rounding.each(weight, curvature.expand_as(weight)).long(), codes)


def test_a_price_of_nothing_leaves_the_nearest_levels() -> None:
    weight = torch.randn(2, 3, 40, dtype=torch.float64)
    nothing = Prices(torch.arange(5.0), torch.zeros(2, 3, 1, dtype=torch.float64))
    assert torch.equal(Rounding(LEVELS, prices=nothing)(weight), Rounding(LEVELS)(weight))


@pytest.mark.parametrize("order", ["gptq", "distance"])
def test_rows_keep_their_prices_where_they_are_picked(order: Any) -> None:
    """Rows of all problems, of several candidates, and pruned ones: each as if it were alone."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2, 12, 40, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64)
    kept = torch.rand(2, 3, 12, generator=generator) < 0.8
    weight = weight * kept.repeat(1, 2, 1)
    price = 5 * torch.rand(2, 6, 1, generator=generator, dtype=torch.float64)
    bits = torch.tensor([4.0, 2.0, 0.5, 2.5, 5.0], dtype=torch.float64)
    hessian = X @ X.mT
    found = compensate(
        weight, hessian, Rounding(LEVELS, prices=Prices(bits, price)), order, kept=kept
    )
    for problem in range(2):
        for row in range(6):
            one = (slice(problem, problem + 1), slice(row, row + 1))
            of_row = (one[0], slice(row % 3, row % 3 + 1))
            alone = compensate(
                weight[one],
                hessian[one[0]],
                Rounding(LEVELS, prices=Prices(bits, price[one])),
                order,
                kept=kept[of_row],
            )
            if order == "distance" or kept[of_row].all():
                assert torch.equal(found.codes[one], alone.codes)
            else:  # rows that have lost different columns: see octavo.ptq.gptq
                assert not found.codes[one].long()[~kept[of_row]].sub(2).any()


def test_prices_are_in_the_units_of_the_weights() -> None:
    prices = Prices(torch.tensor([1.0, 3.0]), torch.tensor([[[2.0], [5.0]]]))
    assert prices.of(torch.tensor([[[0, 1], [1, 1]]])).tolist() == [[8, 30]]
    scale = torch.tensor([[[1.0], [2.0], [0.5], [1.0]]])  # two candidates of two rows
    assert prices.in_units(scale).price.tolist() == [[[2.0], [1.25], [8.0], [5.0]]]
