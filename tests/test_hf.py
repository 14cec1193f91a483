"""Folders of transformers with octavo's own file."""

from pathlib import Path

import pytest
import torch
from tests.language import llama, tokens, write_tokenizer
from transformers import AutoTokenizer

from octavo.errors import FormatError, PlanError
from octavo.hf import PACKED, from_pretrained, save_pretrained
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate


def test_a_network_comes_back_without_float_weights(tmp_path: Path) -> None:
    model = llama()
    model.generation_config.max_new_tokens = 7
    packed = calibrate(model, Plan.uniform(model, 4), [tokens()])
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    save_pretrained(packed, tmp_path / "net", model=model, tokenizer=tokenizer)
    assert [file.name for file in (tmp_path / "net").glob("*.safetensors")] == [PACKED]
    loaded = from_pretrained(tmp_path / "net")
    packed.apply(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded(**tokens()).logits, model(**tokens()).logits)
    assert loaded.generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(tmp_path / "net")("the an").input_ids


def test_a_folder_that_has_its_configuration_already(tmp_path: Path) -> None:
    model = llama()
    packed = calibrate(model, Plan.uniform(model, 4), [tokens()])
    with pytest.raises(PlanError, match=r"expected a config.json or a model"):
        save_pretrained(packed, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path / "net")
    save_pretrained(packed, tmp_path / "net")
    assert type(from_pretrained(tmp_path / "net")) is type(model)


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    model = llama()
    packed = calibrate(model, Plan.uniform(model, 4), [tokens()])
    save_pretrained(packed, tmp_path, model=model)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace("LlamaForCausalLM", "NoSuchModel"))
    with pytest.raises(FormatError, match=r"architecture of transformers .*NoSuchModel"):
        from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(FormatError, match=r"config.json: "):
        from_pretrained(tmp_path)
    config.write_text(text)
    (tmp_path / PACKED).unlink()
    with pytest.raises(FormatError, match=r"octavo\.safetensors: No such file"):
        from_pretrained(tmp_path)
