"""Levels with a scale for each weight: in units of the scale, the problem is one without scales."""

from typing import Any

import pytest
import torch
from torch import Tensor

import octavo.ptq.gptq
from octavo.ptq.compensation import compensate
from octavo.ptq.gptq import gptq
from octavo.ptq.rounding import Rounding

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
