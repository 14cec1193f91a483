"""Sums over a layer's inputs: those of X laid out by hand, in constant memory."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octavo.network.layer_inputs
import octavo.network.moments
from octavo.network.layer_inputs import layer_inputs
from octavo.network.layers import Layer, find_layers
from octavo.network.moments import Moments


def layer_of(module: nn.Module) -> Layer:
    return find_layers(module)[0][0]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_sums_of_a_convolution_against_unfold(
    groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.network.layer_inputs, "CHUNK", chunk)
    shape: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    module = nn.Conv2d(4, 8, (3, 2), groups=groups, **shape)
    layer, moments = layer_of(module), Moments.of(layer_of(module))
    expected = torch.zeros_like(moments.hessian)
    drifts, count = torch.zeros_like(moments.drift), 0
    for seed in range(3):
        x = torch.randn(5, 4, 7, 6, generator=torch.Generator().manual_seed(seed))
        columns = F.unfold(x, (3, 2), **shape).unflatten(
            1, (groups, -1)
        )  # (batch, groups, columns, positions)
        drift = torch.randn(
            groups, 8 // groups, 5 * columns.shape[3], generator=torch.Generator().manual_seed(seed)
        )
        at = 0
        for problem, piece in layer_inputs(layer, module, (x,), {}):
            moments.add(problem, piece, drift[problem, :, at : at + piece.shape[2]])
            at += piece.shape[2]
        by_group = columns.permute(1, 2, 0, 3).flatten(2)  # (groups, columns, n)
        expected += by_group @ by_group.mT
        drifts += drift @ by_group.mT
        count += by_group.shape[2]
    assert torch.allclose(moments.hessian, expected, rtol=1e-4, atol=1e-3)
    assert torch.allclose(moments.drift, drifts, rtol=1e-4, atol=1e-3)
    assert moments.seen == count


@pytest.mark.parametrize("columns", [3, 7, 8, 13])
def test_products_of_a_wide_layer_are_those_of_all_its_columns(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.network.moments, "BLOCK", 4)
    moments = Moments(3, 2, columns, torch.device("cpu"))
    expected = torch.zeros(3, columns, columns)
    for seed, problem in enumerate((slice(None), slice(1, 2), slice(None))):
        x = torch.randn(3, columns, 5, generator=torch.Generator().manual_seed(seed))[problem]
        moments.add(problem, x)
        expected[problem] += x @ x.mT
        assert torch.allclose(moments.hessian, expected, atol=1e-5)


def test_sums_are_the_same_in_one_batch_and_in_several() -> None:
    module, x = nn.Linear(5, 3), torch.randn(12, 5)
    layer, drift = layer_of(module), torch.randn(1, 3, 12)
    whole, parts = Moments.of(layer), Moments.of(layer)
    assert whole.seen == 0
    whole.add(slice(None), x.T.unsqueeze(0), drift)
    for rows in (slice(0, 7), slice(7, 8), slice(8, 12)):
        parts.add(slice(None), x[rows].T.unsqueeze(0), drift[..., rows])
    for name in ("hessian", "drift", "seen"):
        assert torch.allclose(
            torch.as_tensor(getattr(whole, name)), torch.as_tensor(getattr(parts, name)), atol=1e-5
        ), name
    assert torch.allclose(whole.drift[0], drift[0] @ x, atol=1e-5)


def sizes_of(moments: Moments) -> list[torch.Size]:
    return [value.shape for value in vars(moments).values() if isinstance(value, Tensor)]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(8, 4), (6, 8)),
        (nn.Conv2d(2, 4, 3), (6, 2, 5, 5)),
        (nn.ConvTranspose2d(2, 4, 3), (6, 2, 5, 5)),
    ],
)
def test_moments_hold_on_to_no_input(module: nn.Module, shape: tuple[int, ...]) -> None:
    layer, moments = layer_of(module), Moments.of(layer_of(module))
    x = torch.randn(shape)
    given = weakref.ref(x)
    sizes = sizes_of(moments)
    for problem, piece in layer_inputs(layer, module, (x,), {}):
        moments.add(problem, piece, torch.zeros(1, moments.drift.shape[1], piece.shape[2]))
        shown = weakref.ref(piece)
        del piece
    del x
    gc.collect()
    assert given() is None
    assert shown() is None
    assert sizes_of(moments) == sizes
