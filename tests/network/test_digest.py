"""Digests: the same for the same values, others for others."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.network.digest import digest, weights_digest

SAME: dict[str, tuple[Any, Any]] = {
    "order of keys": (
        {"a": torch.ones(2), "b": torch.zeros(3)},
        {"b": torch.zeros(3), "a": torch.ones(2)},
    ),
    "tuple and list": ((torch.ones(2), [torch.ones(3)]), [torch.ones(2), (torch.ones(3),)]),
    "layout": (torch.arange(6).view(2, 3).T.contiguous(), torch.arange(6).view(2, 3).T),
    "parameter": (nn.Parameter(torch.ones(3)), torch.ones(3)),
    "layout in numpy": (np.arange(6).reshape(2, 3).T.copy(), np.arange(6).reshape(2, 3).T),
    "numbers": ({"x": 1, "y": ("a", None, 2.5)}, {"y": ["a", None, 2.5], "x": 1}),
}
OTHER: dict[str, tuple[Any, Any]] = {
    "last bit": (
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, 2.0]).nextafter(torch.tensor([9.0, 2.0])),
    ),
    "sign of zero": (torch.tensor(0.0), torch.tensor(-0.0)),
    "key": ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
    "keys exchanged": (
        {"a": torch.ones(2), "b": torch.zeros(2)},
        {"a": torch.zeros(2), "b": torch.ones(2)},
    ),
    "order of items": ([torch.ones(2), torch.zeros(2)], [torch.zeros(2), torch.ones(2)]),
    "one more item": ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
    "type": (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    "number": ({"x": 1}, {"x": 2}),
    "number and text": ([1], ["1"]),
    "shape": (torch.arange(24), torch.arange(24).view(6, 4)),
    "type of as many bytes": (torch.zeros(2, dtype=torch.float64), torch.zeros(4)),
    "batches": ([torch.arange(4)], [torch.arange(2), torch.arange(2, 4)]),
    "nesting": ([[1], 2], [[1, 2]]),
    "key and text": ({"ab": 1}, ["ab", 1]),
    "numpy": (np.arange(5000), np.where(np.arange(5000) == 2500, 0, np.arange(5000))),
    "type in numpy": (np.zeros(2), np.zeros(4, np.float32)),
    "deep inside": ({"x": [({"y": torch.ones(1)},)]}, {"x": [({"y": torch.zeros(1)},)]}),
}


@pytest.mark.parametrize("what", SAME)
def test_what_is_the_same(what: str) -> None:
    assert digest(SAME[what][0]) == digest(SAME[what][1])


@pytest.mark.parametrize("what", OTHER)
def test_what_is_not(what: str) -> None:
    assert digest(OTHER[what][0]) != digest(OTHER[what][1])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_every_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert len(digest(torch.ones(shape, dtype=dtype))) == 16


def test_weights_have_the_digest_that_is_in_published_results() -> None:
    """The keys in order, each with its little-endian values."""
    model = nn.BatchNorm1d(2)
    by_hand = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        by_hand.update(name.encode() + value.numpy().tobytes())
    assert weights_digest(model.state_dict()) == by_hand.hexdigest()[:12]
