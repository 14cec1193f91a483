"""MXFP4 to MXINT8 tensors: exact, in torch's own types, and as other libraries read them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from octavo.deploy.exporting import export
from octavo.deploy.mx import BLOCK, read_mx
from octavo.errors import ExportError
from octavo.formats.fitting import Per, group_size_of
from octavo.formats.registry import codebook_at
from octavo.formats.rows import group_count
from octavo.formats.width import WidthLike, read_width
from octavo.network.layers import channels_first, find_layers
from octavo.storage.packed import Packed, pack
from octavo.storage.quantized import Quantized


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(64, 8), nn.Linear(33, 5), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Embedding(7, 6), nn.LSTM(5, 4), nn.BatchNorm1d(3),
    )  # fmt: skip
    model.add_module("tied", nn.Embedding(7, 6))
    model.tied.weight = model[5].weight  # type: ignore[union-attr]
    return model.eval()


def quantize(model: nn.Module, bits: WidthLike, per: Per = "channel", lowest: int = -9) -> Packed:
    width = read_width(bits)
    generator, layers = torch.Generator().manual_seed(width.bits), {}
    for layer in find_layers(model)[0]:
        shape = channels_first(layer.weight, layer.groups).shape
        codes = torch.randint(0, width.level_count, shape, generator=generator).to(torch.uint8)
        size = group_size_of(per)
        exponents: tuple[int, ...] = () if per == "tensor" else (shape[0],)
        if size:
            exponents = (shape[0], group_count(shape.numel() // shape[0], size))
        top = torch.randint(lowest, 3, exponents, generator=generator)
        layers[layer.name] = Quantized.of(layer, codebook_at(width, top.int(), size), codes)
    return pack(model, layers)


@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 32), ("group", 64)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, "fp4", "fp6", "fp8", "int8", "apot6"])
def test_every_tensor_is_there_and_exact(bits: WidthLike, per: Per, tmp_path: Path) -> None:
    model = network()
    packed = quantize(model, bits, per)
    held = read_mx(export(model, packed, tmp_path / "net.safetensors", form="mx", example=()))
    packed.apply(model)
    state = model.state_dict()
    assert held.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(held[name], value), name


@pytest.mark.parametrize("per", ["channel", ("group", 32)])
@pytest.mark.parametrize("bits", [2, 3, 4, "fp4", 5, "fp8", "fp6", "int8"])
def test_the_stored_numbers_by_the_formats_own_rules(
    bits: WidthLike, per: Per, tmp_path: Path
) -> None:
    """E2M1, E2M3 and E8M0 as ml_dtypes has them, in place of torch and of our tables."""
    model = nn.Sequential(nn.Linear(96, 8))
    packed = quantize(model, bits, per)
    path = export(model, packed, tmp_path / "net.safetensors", form="mx", example=())
    with safetensors.safe_open(path, "pt") as file:
        stored, scale = file.get_tensor("0.weight"), file.get_tensor("0.weight_scale")
    assert scale.dtype == torch.float8_e8m0fnu
    assert scale.shape == (8, 96 // BLOCK)
    dtypes = {"fp6": torch.uint8, "int8": torch.int8, 5: torch.float8_e4m3fn}
    dtypes["fp8"] = torch.float8_e4m3fn
    assert stored.dtype == dtypes.get(bits, torch.float4_e2m1fn_x2)
    raw = stored.view(torch.uint8).numpy()
    if bits == "fp6":  # 4 elements in 24 bits, little-endian
        triples = raw.reshape(8, 24, 3).astype(np.uint32)
        together = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
        codes = np.stack([together >> 6 * n & 63 for n in range(4)], -1).astype(np.uint8)
        numbers = codes.view(ml_dtypes.float6_e2m3fn).astype(np.float32)
    elif bits == "int8":  # OCP MX 1.0, 5.3.4: an implied scale of 2^-6
        numbers = raw.view(np.int8).astype(np.float32) / 64
    elif stored.dtype == torch.float4_e2m1fn_x2:
        nibbles = np.stack([raw & 15, raw >> 4], -1).reshape(8, 96)
        numbers = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    else:
        numbers = raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    powers = scale.view(torch.uint8).numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    weight = (numbers.reshape(8, -1, BLOCK) * powers[..., None]).reshape(8, 96)
    assert np.array_equal(weight, packed.layers["0"].weight().numpy())


@pytest.mark.parametrize("bits", [4, 5])
def test_torchao_reads_the_same_weights(bits: int, tmp_path: Path) -> None:
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    model = nn.Sequential(nn.Linear(96, 8))
    packed = quantize(model, bits)
    path = export(model, packed, tmp_path / "net.safetensors", form="mx", example=())
    with safetensors.safe_open(path, "pt") as file:
        stored, scale = file.get_tensor("0.weight"), file.get_tensor("0.weight_scale")
    kind = stored.dtype
    stored = stored.view(torch.uint8) if bits <= 4 else stored
    weight = mx_tensor.to_dtype(stored, scale, kind, BLOCK, torch.float32)
    assert torch.equal(weight, packed.layers["0"].weight())


def test_groups_that_are_no_blocks_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(96, 8))
    packed = quantize(model, "fp4", ("group", 48))
    with pytest.raises(ExportError, match=r"^0: expected groups of a multiple of 32 inputs.* 48$"):
        export(model, packed, tmp_path / "net.safetensors", form="mx", example=())


@pytest.mark.parametrize(("bits", "lowest", "said"), [
    (7, -9, r"^0: FP8 E4M3 does not hold the 65 levels of its width, 7$"),
    (4, -140, r"^0: FP4 E2M1 with E8M0 scales does not hold its weights exactly$"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(
    bits: int, lowest: int, said: str, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(96, 64))
    with pytest.raises(ExportError, match=said):
        export(
            model,
            quantize(model, bits, lowest=lowest),
            tmp_path / "net.safetensors",
            form="mx",
            example=(),
        )
    assert list(tmp_path.iterdir()) == []
