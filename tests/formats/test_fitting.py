"""One function fits all codebooks: per tensor, channel and group, against a plain loop."""

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import Codebook
from octavo.formats.fitting import group_size_of, read_per
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import BITS, Width

ALL = [Width(bits, name) for name, possible in BITS.items() for bits in possible]


def weights() -> Tensor:
    """Groups of five that differ in scale, and one of zeros."""
    weight = torch.randn(3, 13, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-2, 2, 13)
    weight[1, 5:10] = 0
    return weight


def best_exponent(weight: Tensor, width: Width, importance: Tensor) -> int:
    """The exponent of least squared error among all that saturate a weight, and the next one above;
    of equals the largest."""

    def error(exponent: int) -> float:
        level = codebook_at(width, torch.tensor(exponent)).project(weight)
        return float(((weight.double() - level).square() * importance).sum())

    start = int(fitted_codebook(weight, width, fit="max", per="tensor").max_exponent)
    return max(range(-30, start + 1), key=lambda exponent: (-error(exponent), exponent))


@pytest.mark.parametrize("width", ALL, ids=str)
def test_each_group_has_the_exponent_of_least_error(width: Width) -> None:
    weight = weights()
    importance = torch.rand(13, generator=torch.Generator().manual_seed(1))
    found = fitted_codebook(
        weight, width, fit="mse", per=("group", 5), importance=importance
    ).max_exponent
    assert found.shape == (3, 3)
    for channel in range(3):
        for group, part in enumerate((slice(0, 5), slice(5, 10), slice(10, 13))):
            own = weight[channel, part]
            if own.any():
                assert found[channel, group] == best_exponent(own, width, importance[part])
    assert found[1, 1] == found[1].max()  # a group of zeros: any will do


@pytest.mark.parametrize("width", ALL, ids=str)
def test_a_group_is_a_tensor_by_itself(width: Width) -> None:
    weight = weights().view(3, 13, 1)
    codebook = fitted_codebook(weight, width, fit="max", per=("group", 5))
    level = codebook.project(weight)
    for channel in range(3):
        for part in (slice(0, 5), slice(5, 10), slice(10, 13)):
            own = weight[channel, part]
            alone: Codebook = fitted_codebook(own, width, fit="max", per="tensor")
            assert torch.equal(level[channel, part], alone.project(own))


def test_groups_are_never_worse_than_channels() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    pers: list[Any] = ["tensor", "channel", ("group", 128), ("group", 32)]
    books = [fitted_codebook(weight, "fp4", fit="mse", per=per) for per in pers]
    errors = [float((weight - book.project(weight)).square().sum()) for book in books]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_what_shares_an_exponent() -> None:
    for per in ("tensor", "channel", ("group", 32)):
        assert read_per(per) == per
    assert read_per(["group", 32]) == ("group", 32)  # as YAML has it
    assert [group_size_of(per) for per in ("tensor", "channel", ("group", 64))] == [0, 0, 64]


@pytest.mark.parametrize("per", ["group", ("group",), ("group", 1), ("group", "32"), 32, None])
def test_what_does_not_say_what_shares_an_exponent(per: Any) -> None:
    with pytest.raises(PlanError, match=r'^fc: expected per "tensor" or "channel", got .*group'):
        read_per(per, "fc")
