"""The exponents of groups in a file: what a channel has in common, and how far each lies below."""

import pytest
import torch

from octavo.errors import PlanError
from octavo.formats.registry import fitted_codebook
from octavo.storage.exponents import joined, split
from octavo.storage.packed import Packed
from octavo.storage.quantized import Quantized


def test_they_come_back() -> None:
    exponents = torch.randint(-149, 100, (5, 7), generator=torch.Generator().manual_seed(0))
    largest, drops = split(exponents, "fc")
    assert largest.tolist() == [max(row) for row in exponents.tolist()]
    assert torch.equal(joined(largest, drops), exponents)


def test_exponents_too_far_apart_are_refused() -> None:
    with pytest.raises(PlanError, match=r"^fc: expected .* within 254 of each other, got 255"):
        split(torch.tensor([[0, 5], [-128, 127]]), "fc")


def test_they_take_less_than_a_bit_and_a_half_each() -> None:
    """Gaussian weights: the largest of 32 hardly ever differs by more than an octave."""
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    sizes = []
    for per in ("channel", ("group", 32)):
        codebook = fitted_codebook(weight, "fp4", fit="mse", per=per)
        codes = torch.zeros(weight.shape, dtype=torch.uint8)  # equal codes take no room
        sizes.append(Packed({"fc": Quantized(("fc.weight",), codebook, codes)}, ()).file_bytes)
    groups = weight.numel() / 32
    assert 8 * (sizes[1] - sizes[0]) / groups < 1.5
