"""The tokenizer in a GGUF file: texts, scores that order merges, kinds, special tokens."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import TokenType
from tests.language import llama, tokens, write_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from octavo.deploy.exporting import export_checked
from octavo.errors import ExportError
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate

# The entry of Llama 3's tokenizer.json.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


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
    assert values["tokenizer.ggml.add_space_prefix"] is True


def write_byte_level(folder: Path, rule: dict[str, Any] | None) -> None:
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"] |= {"byte_fallback": False}
    tokenizer |= {"normalizer": None, "pre_tokenizer": rule}
    path.write_text(json.dumps(tokenizer))


def test_a_tokenizer_of_bytes_keeps_its_merges(tmp_path: Path) -> None:
    write_byte_level(tmp_path, LLAMA_3)
    fields = gguf.GGUFReader(export(tmp_path)).fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert fields["tokenizer.ggml.merges"].contents()[0] == "▁ t"


def test_a_tokenizer_that_splits_texts_by_another_rule_is_refused(tmp_path: Path) -> None:
    write_byte_level(tmp_path, {"type": "Whitespace"})
    with pytest.raises(ExportError, match=r"json: expected a tokenizer that splits texts as one o"):
        export(tmp_path)


@pytest.mark.parametrize("last", [True, False])
def test_the_file_says_which_tokens_are_added(last: bool, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    fields = gguf.GGUFReader(export(tmp_path)).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.add_eos_token"].contents() is False
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if last else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(path))
    fields = gguf.GGUFReader(export(tmp_path)).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_eos_token"].contents() is last


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(ExportError, match=r"tokenizer.json: expected a BPE tokenizer, got Unigram"):
        export(tmp_path)
