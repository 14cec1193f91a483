"""Pruned weights are told from zeros that are levels."""

import torch

from octavo.formats.zeros import pruned_mask


def test_zeros_are_pruned_but_for_those_among_powers_of_two() -> None:
    weight = torch.tensor([[0.3, 0.0, -0.7], [0.0, 0.1, 0.9]])
    assert torch.equal(pruned_mask(weight), weight == 0)
    assert not pruned_mask(torch.tensor([0.5, 0.0, -2.0, 2.0**-130])).any()
    assert not pruned_mask(torch.tensor([0.3, 0.1])).any()
    assert pruned_mask(torch.zeros(3)).all()
