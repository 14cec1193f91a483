"""Pruned weights are told from zeros that are levels."""

import pytest
import torch

from octavo.formats.registry import codebook_at
from octavo.formats.width import BITS, Width
from octavo.formats.zeros import pruned_mask


def test_zeros_are_pruned_but_for_those_among_levels() -> None:
    weight = torch.tensor([[0.3, 0.0, -0.7], [0.0, 0.1, 0.9]])
    assert torch.equal(pruned_mask(weight), weight == 0)
    assert not pruned_mask(torch.tensor([0.5, 0.0, -2.0, 2.0**-130])).any()
    assert not pruned_mask(torch.tensor([0.3, 0.1])).any()
    assert pruned_mask(torch.zeros(3)).all()
    two = torch.tensor([0.75, 0.0, -7.0, 2.0**-130 + 2.0**-128])  # sums and a difference of two
    assert not pruned_mask(two).any()
    assert not pruned_mask(torch.tensor([0.75, 0.0, 127.0])).any()  # the largest level of int8
    assert pruned_mask(torch.tensor([0.75, 0.0, 129.0])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "width", [Width(bits, codebook) for codebook, of in BITS.items() for bits in of], ids=str
)
def test_no_level_of_any_codebook_makes_a_zero_pruned(width: Width) -> None:
    exponents = torch.tensor([-3, 5], dtype=torch.int32)
    assert not pruned_mask(codebook_at(width, exponents).levels()).any()


def test_a_few_zeros_are_there_by_chance() -> None:
    """One exact zero among thousands is no pruning, as in a ResNet-50 or a MiniLM."""
    weight = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    weight.view(-1)[:6] = 0
    assert not pruned_mask(weight).any()
    weight.view(-1)[:7] = 0  # more than one in a thousand
    assert torch.equal(pruned_mask(weight), weight == 0)
