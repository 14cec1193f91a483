"""Forms that are exact: sums of two powers; a file that computes something else is not written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from octavo.deploy.exporting import export_checked
from octavo.formats.fitting import Per
from octavo.formats.registry import fitted_codebook
from octavo.formats.width import Apot
from octavo.network.layers import find_layers
from octavo.storage.packed import pack
from octavo.storage.quantized import Quantized


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4)
    ).eval()


@pytest.mark.parametrize("form", ["lut", "fp8", "int8"])
def test_sums_of_two_powers_of_two(
    form: str, network: nn.Module, share_trace: Callable[[str], object], tmp_path: Path
) -> None:
    share_trace("sums of two powers")
    layers = {}
    for layer, bits in zip(find_layers(network)[0], (5, 6, 8 if form == "lut" else 5), strict=True):
        per: Per = "channel" if bits == 6 else "tensor"
        book = fitted_codebook(layer.weight, Apot(bits), fit="max", per=per)
        layers[layer.name] = Quantized.of(layer, book, book.encode(layer.weight))
    packed = pack(network, layers)
    x = torch.randn(64, 40)
    made = export_checked(network, packed, tmp_path / "net.onnx", form=form, example=x)
    assert made.difference is not None
    assert made.difference < (1e-5 if form != "int8" else 0.03)
    assert made.inexact == ()
