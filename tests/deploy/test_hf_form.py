"""The form ``hf``: compressed-tensors' layout byte by byte, and what transformers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.language import llama, tokens
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from octavo.activations.quantization import quantize_activations
from octavo.deploy.exporting import export_checked
from octavo.deploy.hf import quiet
from octavo.errors import ExportError
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed

CODES = {0.0: 0, 0.5: 1, 1.0: 2, 1.5: 3, 2.0: 4, 3.0: 5, 4.0: 6, 6.0: 7}


def packed_llama(bits: Any = 4, **options: Any) -> tuple[Any, Packed]:
    model = llama(**options)
    plan = Plan.uniform(model, bits, include="*_proj")
    return model, calibrate(model, plan, [tokens()])


def test_transformers_loads_the_packed_weights(tmp_path: Path) -> None:
    model, packed = packed_llama()
    exported = export_checked(model, packed, tmp_path / "out", form="hf", example=tokens())
    assert exported.difference == 0.0
    assert (exported.inexact, exported.wider) == ((), ())
    config = CompressedTensorsConfig(dequantize=True)
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", quantization_config=config, dtype=torch.float32
        )
    packed.apply(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()).logits, model(**tokens()).logits)


def test_the_layout_by_a_second_writer(tmp_path: Path) -> None:
    model, packed = packed_llama()
    export_checked(model, packed, tmp_path, form="hf")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    weight = packed.layers[name].weight().numpy()
    stored = tensors[f"{name}.weight_packed"]
    scales = tensors[f"{name}.weight_scale"]
    assert (stored.dtype, stored.shape) == (torch.uint8, (64, 48))
    assert (scales.dtype, scales.shape) == (torch.uint8, (64, 3))
    for row in range(64):
        for column in range(96):
            element = weight[row, column] / np.float64(2.0) ** (
                int(scales[row, column // 32]) - 127
            )
            code = CODES[abs(element)] + 8 * (element < 0)
            byte = int(stored[row, column // 2])
            assert (byte >> 4 if column % 2 else byte & 15) == code
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mxfp4-pack-quantized"
    assert config["ignore"] == ["lm_head"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32


def test_layers_that_do_not_fit_stay_in_bfloat16(tmp_path: Path) -> None:
    model, packed = packed_llama(columns=72)  # not a multiple of 32
    exported = export_checked(model, packed, tmp_path, form="hf", example=tokens())
    wide = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert list(exported.wider) == wide
    assert exported.difference == 0.0
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == [*wide, "lm_head"]
    assert load_file(tmp_path / "model.safetensors")[f"{wide[0]}.weight"].dtype == torch.bfloat16


def test_a_tied_embedding_is_not_packed(tmp_path: Path) -> None:
    model = llama(vocabulary=320)
    packed = calibrate(model, Plan.uniform(model, 4), [tokens()])
    exported = export_checked(model, packed, tmp_path, form="hf", example=tokens())
    assert exported.wider == ("model.embed_tokens",)
    assert "model.embed_tokens.weight" in load_file(tmp_path / "model.safetensors")


def test_a_model_with_a_cache_is_told_to_switch_it_off(tmp_path: Path) -> None:
    model, packed = packed_llama()
    model.config.use_cache = True
    with pytest.raises(
        ExportError, match=r"it returns a cache: set model\.config\.use_cache = False"
    ):
        export_checked(model, packed, tmp_path / "net.onnx", form="float", example=tokens())


def test_what_the_form_does_not_hold(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(32, 8))
    packed = calibrate(network, Plan.uniform(network, 4), [torch.rand(64, 32)])
    with pytest.raises(ExportError, match=r"^form hf: expected a model of transformers"):
        export_checked(network, packed, tmp_path / "out", form="hf")
    model, packed = packed_llama("apot6")
    with pytest.raises(ExportError, match=r"^form hf: expected linear layers of fp4, or of 2 to 4"):
        export_checked(model, packed, tmp_path / "out", form="hf")
    model, _ = packed_llama()
    quantize_activations(model, [tokens()], 8)
    packed = calibrate(model, Plan.uniform(model, 4, include="*_proj"), [tokens()])
    with pytest.raises(ExportError, match="its inputs are quantized, which the form hf does not"):
        export_checked(model, packed, tmp_path / "out", form="hf")
    assert not (tmp_path / "out").exists()
