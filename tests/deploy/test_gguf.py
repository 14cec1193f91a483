"""The form ``gguf``: exact types, and the network that transformers reads from the file."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from tests.language import llama, tokens
from torch import nn
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from octavo.deploy.exporting import export_checked
from octavo.deploy.hf import quiet
from octavo.errors import ExportError
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed


def packed_llama(bits: Any = 4, **options: Any) -> tuple[Any, Packed]:
    model = llama(**options)
    plan = Plan.uniform(model, bits, include="*_proj")
    return model, calibrate(model, plan, [tokens()])


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_network(tied: bool, tmp_path: Path) -> None:
    model, packed = packed_llama(tied=tied)
    exported = export_checked(model, packed, tmp_path / "net.gguf", form="gguf")
    assert (exported.inexact, exported.wider) == ((), ())
    loaded = llama(tied=tied)
    with torch.no_grad():
        for value in loaded.parameters():
            value.zero_()
    with quiet():
        read = load_gguf_checkpoint(
            tmp_path / "net.gguf", return_tensors=True, model_to_load=loaded
        )
    left = loaded.load_state_dict(read["tensors"], strict=False).missing_keys
    assert left == (["lm_head.weight"] if tied else [])
    packed.apply(model)
    with torch.no_grad():
        expected = model(**tokens()).logits
        assert torch.allclose(loaded(**tokens()).logits, expected, atol=1e-4)


def types_of(path: Path) -> dict[str, GGMLQuantizationType]:
    return {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


def test_each_matrix_has_the_smallest_type_that_is_exact(tmp_path: Path) -> None:
    model = llama(columns=256)
    plan = Plan(dict.fromkeys(Plan.uniform(model, 4, include="*_proj"), 4))
    plan["model.layers.0.mlp.down_proj"] = 2  # 256 columns
    plan["model.layers.1.mlp.down_proj"] = 6  # too fine for MXFP4
    packed = calibrate(model, plan, [tokens()])
    path = tmp_path / "net.gguf"
    exported = export_checked(model, packed, path, form="gguf")
    types = types_of(path)
    assert types["blk.0.ffn_down.weight"] == GGMLQuantizationType.TQ1_0
    assert types["blk.1.ffn_down.weight"] == GGMLQuantizationType.F16
    assert types["blk.0.attn_q.weight"] == GGMLQuantizationType.MXFP4
    assert types["token_embd.weight"] == GGMLQuantizationType.F16
    assert types["blk.0.attn_norm.weight"] == GGMLQuantizationType.F32
    assert exported.wider == ("model.layers.1.mlp.down_proj",)
    assert exported.inexact == ()


def test_rows_of_rotary_heads_alternate(tmp_path: Path) -> None:
    """llama.cpp turns neighbouring numbers of a head, transformers its two halves."""
    model, packed = packed_llama()
    path = tmp_path / "net.gguf"
    export_checked(model, packed, path, form="gguf")
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.attn_k.weight")
    stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = packed.layers["model.layers.0.self_attn.k_proj"].weight().numpy()
    for head in range(2):
        for half in range(2):
            for row in range(8):
                expected = weight[16 * head + 8 * half + row]
                assert np.array_equal(stored[16 * head + 2 * row + half], expected)


def test_the_figures_of_the_architecture(tmp_path: Path) -> None:
    model, packed = packed_llama()
    export_checked(model, packed, tmp_path / "net.gguf", form="gguf")
    fields = gguf.GGUFReader(tmp_path / "net.gguf").fields
    values = {name: field.contents() for name, field in fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["llama.block_count"] == 2
    assert values["llama.attention.head_count_kv"] == 2
    assert values["llama.rope.freq_base"] == 10000.0
    assert values["tokenizer.ggml.model"] == "no_vocab"


def test_what_the_form_does_not_hold(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(32, 8))
    packed = calibrate(network, Plan.uniform(network, 4), [torch.rand(64, 32)])
    with pytest.raises(
        ExportError, match=r"one of the types llama, mistral, qwen2, got Sequential"
    ):
        export_checked(network, packed, tmp_path / "net.gguf", form="gguf")
    model, packed = packed_llama()
    model.config.rope_parameters = {"rope_type": "llama3", "rope_theta": 10000.0}
    with pytest.raises(ExportError, match="plain rotary embeddings, got 'llama3'"):
        export_checked(model, packed, tmp_path / "net.gguf", form="gguf")
    assert not (tmp_path / "net.gguf").exists()
