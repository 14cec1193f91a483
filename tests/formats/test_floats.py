"""Floating-point numbers of 4, 6 and 8 bits: by the definition of the formats in exact fractions,
and as ml_dtypes has them."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo.formats.floats import floats
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import Width

# Bits of the exponent and of the mantissa, and the largest number (OCP MX 1.0, 5.3; OCP FP8, 5.2).
LAYOUTS: dict[str, tuple[int, int, Fraction | int]] = {
    "fp4": (2, 1, 6),
    "fp6": (2, 3, Fraction(15, 2)),
    "fp8": (4, 3, 448),
}
DTYPES = {
    "fp4": ml_dtypes.float4_e2m1fn,
    "fp6": ml_dtypes.float6_e2m3fn,
    "fp8": ml_dtypes.float8_e4m3fn,
}


def numbers(exponent_bits: int, mantissa_bits: int, largest: Fraction | int) -> list[Fraction]:
    """All numbers that are not negative, by the definition: the codes beyond the largest are NaN.

    2^(E - bias) (1 + M 2^-m), and 2^(1 - bias) M 2^-m where E is 0."""
    bias = 2 ** (exponent_bits - 1) - 1
    found = []
    for e in range(2**exponent_bits):
        for m in range(2**mantissa_bits):
            fraction = Fraction(m, 2**mantissa_bits)
            scale = Fraction(2) ** (max(e, 1) - bias)
            found.append(scale * (fraction + (1 if e else 0)))
    return [number for number in found if number <= largest]


def of_dtype(width: str) -> NDArray[np.float32]:
    """The finite numbers of ml_dtypes' type, each once, ascending."""
    bits = np.arange(2 ** int(width[-1]), dtype=np.uint8).view(DTYPES[width])
    values = bits.astype(np.float32)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("width", LAYOUTS)
@pytest.mark.parametrize("top", [0, 5])
def test_the_levels_are_the_numbers_of_the_format(width: str, top: int) -> None:
    expected = numbers(*LAYOUTS[width])
    leading = Fraction(2) ** (int(expected[-1]).bit_length() - 1)  # of the largest number
    positive = [number / leading * 2**top for number in expected]
    levels = codebook_at(width, torch.tensor(top)).levels().tolist()
    assert [Fraction(level) for level in levels] == [-x for x in positive[:0:-1]] + positive
    assert np.array_equal(np.array(levels), of_dtype(width) / float(leading) * 2**top)


@pytest.mark.parametrize("width", LAYOUTS)
def test_a_weight_is_rounded_as_ml_dtypes_does(width: str) -> None:
    """But for ties, which there go to the even code."""
    weight = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    largest = float(of_dtype(width)[-1])
    weight = weight[weight.abs() < 3.9] * (largest / 4)
    exponent = int(np.log2(largest))
    found = codebook_at(width, torch.tensor(exponent)).project(weight)
    assert np.array_equal(found.numpy(), weight.numpy().astype(DTYPES[width]).astype(np.float32))


def test_fp4_is_what_sums_of_two_powers_of_two_would_be_at_four_bits() -> None:
    assert floats(4).magnitudes == (1, 2, 3, 4, 6, 8, 12)
    powers = [0, *(2**k for k in range(5))]
    assert set(floats(4).magnitudes) <= {a + b for a in powers for b in powers}
    assert floats(4).width == Width(4, "fp")


@pytest.mark.parametrize(("width", "expected"), [("fp4", 0.0127), ("fp6", 0.0008)])
def test_the_error_on_gaussian_weights(width: str, expected: float) -> None:
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    level = fitted_codebook(weight, width, fit="mse", per="tensor").project(weight)
    error = float((weight - level).square().sum() / weight.square().sum())
    assert error == pytest.approx(expected, rel=0.05)
