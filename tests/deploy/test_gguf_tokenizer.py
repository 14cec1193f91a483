"""The tokenizer in a GGUF file: texts, scores that order merges, kinds, special tokens."""

import json
from pathlib import Path

import gguf
import pytest
from gguf import TokenType
from tests.language import llama, tokens, write_tokenizer

from octavo.deploy.exporting import export_checked
from octavo.errors import ExportError
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate


def export(folder: Path) -> Path:
    model = llama()
    model.config._name_or_path = model.name_or_path = str(folder)
    packed = calibrate(model, Plan.uniform(model, 4, include="*_proj"), [tokens()])
    path = folder / "net.gguf"
    export_checked(model, packed, path, form="gguf")
    return path


def test_a_tokenizer_with_a_token_for_each_byte(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    fields = gguf.GGUFReader(export(tmp_path)).fields
    values = {name: field.contents() for name, field in fields.items()}
    texts = values["tokenizer.ggml.tokens"]
    scores = dict(zip(texts, values["tokenizer.ggml.scores"], strict=True))
    kinds = dict(zip(texts, values["tokenizer.ggml.token_type"], strict=True))
    assert values["tokenizer.ggml.model"] == "llama"
    assert len(texts) == 300
    assert texts[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert texts[-1] == "[PAD299]"  # the network has more embeddings than the tokenizer tokens
    assert scores["▁t"] > scores["he"] > scores["▁the"] > scores["a"]
    assert kinds["<s>"] == TokenType.CONTROL
    assert kinds["<0x41>"] == TokenType.BYTE
    assert kinds["a"] == TokenType.NORMAL
    assert values["tokenizer.ggml.eos_token_id"] == 2


def test_a_tokenizer_of_bytes_keeps_its_merges(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"] |= {"byte_fallback": False}
    path.write_text(json.dumps(tokenizer))
    fields = gguf.GGUFReader(export(tmp_path)).fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert fields["tokenizer.ggml.merges"].contents()[0] == "▁ t"


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(ExportError, match=r"tokenizer.json: expected a BPE tokenizer, got Unigram"):
        export(tmp_path)
