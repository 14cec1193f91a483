"""One quantized tensor: from a layer of a model and back, in the parameter's own layout."""

import math

import pytest
import torch
from torch import nn

from octavo.formats.powers_of_two import power_of_two
from octavo.formats.registry import codebook_at
from octavo.network.layers import channels_first, find_layers
from octavo.storage.quantized import Quantized


@pytest.mark.parametrize(
    "module",
    [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)],
    ids=lambda module: type(module).__name__,
)
def test_its_weight_has_the_levels_in_the_parameters_layout(module: nn.Module) -> None:
    (layer,) = find_layers(module)[0]
    rows = channels_first(layer.weight.detach(), layer.groups)
    codebook = power_of_two(rows, 3, fit="mse", per="channel")
    quantized = Quantized.of(layer, codebook, codebook.encode(rows))
    assert quantized.names == ("weight",)
    assert quantized.weight().shape == layer.weight.shape
    assert torch.equal(channels_first(quantized.weight(), layer.groups), codebook.project(rows))


@pytest.mark.parametrize("module", [nn.Linear(5, 3), nn.ConvTranspose2d(4, 6, 3, groups=2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dense", [True, False])
def test_its_weight_is_written_into_any_memory(
    module: nn.Module, dtype: torch.dtype, dense: bool
) -> None:
    (layer,) = find_layers(module)[0]
    rows = channels_first(layer.weight.detach(), layer.groups)
    codebook = power_of_two(rows, 3, per="channel")
    quantized = Quantized.of(layer, codebook, codebook.encode(rows))
    target = torch.full(layer.weight.shape, 7.0, dtype=dtype)
    target = target if dense else target.mT.contiguous().mT
    quantized.write(target)
    assert torch.equal(target, quantized.weight().to(dtype))


def test_all_names_of_a_tied_weight_are_kept() -> None:
    model = nn.Module()
    model.embed, model.out = nn.Embedding(5, 3), nn.Linear(3, 5)
    model.out.weight = model.embed.weight
    (layer,) = find_layers(model)[0]
    codebook = power_of_two(layer.weight.detach(), 4)
    quantized = Quantized.of(layer, codebook, codebook.encode(layer.weight))
    assert quantized.names == ("embed.weight", "out.weight")


def test_the_bytes_of_its_codes_grow_with_what_they_say() -> None:
    pytest.importorskip("constriction")
    codebook = codebook_at(3, torch.tensor(0))
    codes = torch.randint(0, 5, (64, 64), dtype=torch.uint8)
    size = Quantized(("weight",), codebook, codes).small_bytes
    assert size * 8 == pytest.approx(codes.numel() * math.log2(5), rel=0.05)
    assert Quantized(("weight",), codebook, torch.full_like(codes, 2)).small_bytes < size / 20
