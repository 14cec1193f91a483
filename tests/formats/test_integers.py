"""Integers of 8 bits with a power of two as scale."""

from fractions import Fraction

import numpy as np
import torch

from octavo.formats.integers import integers
from octavo.formats.registry import codebook_at, fitted_codebook


def test_the_levels_are_the_integers_that_are_symmetric() -> None:
    levels = codebook_at("int8", torch.tensor(6)).levels().tolist()
    assert [Fraction(level) for level in levels] == [Fraction(n) for n in range(-127, 128)]
    assert integers(8).following == 128


def test_a_weight_is_rounded_to_the_nearest() -> None:
    weight = 40 * torch.randn(2000, generator=torch.Generator().manual_seed(0))
    found = codebook_at("int8", torch.tensor(6)).project(weight).numpy()
    assert np.array_equal(found, np.clip(np.rint(weight.numpy()), -127, 127))


def test_the_scale_is_a_power_of_two() -> None:
    weight = torch.tensor([0.3, -1.27, 0.004])
    codebook = fitted_codebook(weight, "int8", fit="max", per="tensor")
    assert int(codebook.max_exponent) == 0
    assert codebook.project(weight).tolist() == [19 / 64, -81 / 64, 0.0]
