"""Outputs beside each other: relative to the largest value of each."""

import numpy as np
import torch

from octavo.deploy.comparison import agreement, compare, differences


def largest(expected: object, got: object) -> float:
    return differences(expected, got)[0]


def test_the_largest_difference_is_relative_to_the_largest_value_of_each_output() -> None:
    expected = {"a": torch.tensor([4.0, -8.0]), "b": (torch.tensor([0.5]),)}
    assert largest(expected, expected) == 0
    assert largest(expected, (torch.tensor([4.0, -7.0]), torch.tensor([0.5]))) == 1 / 8
    assert largest(expected, (torch.tensor([4.0, -8.0]), torch.tensor([1.0]))) == 1
    assert largest(torch.zeros(2), torch.zeros(2)) == 0
    assert np.isnan(largest(torch.ones(2), torch.tensor([1.0, torch.nan])))


def test_the_mean_difference() -> None:
    assert differences(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 1.0])) == (0.5, 0.25)


def test_agreement_counts_rows() -> None:
    first = torch.eye(4)
    second = first.clone()
    second[0] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    assert agreement(first, second) == 0.75
    assert agreement((first, second), (first, first)) == 1


def test_a_regression_has_no_classes_that_agree() -> None:
    """The largest value of a batch of numbers is no class, and one number has nothing to choose."""
    numbers = torch.tensor([3.0, 1.0])
    assert agreement(numbers, numbers) is None
    assert agreement(numbers[:, None], numbers[:, None]) is None
    assert compare(numbers.sum(), numbers.sum()).agreement is None


def test_compare_has_all_three() -> None:
    compared = compare(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
    assert (compared.largest, compared.mean, compared.agreement) == (0.5, 0.25, 1.0)
