"""The rule by which a tokenizer splits texts is found by what it does."""

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split, Whitespace
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from octavo.deploy.gguf_splitting import splitting_rule
from octavo.errors import ExportError


def rule_of(rule: PreTokenizer | None) -> str:
    tokenizer = Tokenizer(models.BPE())
    if rule is not None:
        tokenizer.pre_tokenizer = rule
    return splitting_rule(tokenizer, Path("tokenizer.json"))


def test_the_rules_of_known_tokenizers() -> None:
    plain = ByteLevel(add_prefix_space=False, use_regex=False)
    qwen = Split(Regex(PRETOKENIZE_REGEX), "isolated")
    assert rule_of(Sequence([qwen, plain])) == "qwen2"
    by_threes = PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")
    assert rule_of(Sequence([Split(Regex(by_threes), "isolated"), plain])) == "llama-bpe"
    assert rule_of(ByteLevel(add_prefix_space=False)) == "gpt-2"
    digits = Digits(individual_digits=True)
    assert rule_of(Sequence([digits, ByteLevel(add_prefix_space=False)])) == "smollm"


@pytest.mark.parametrize("rule", [None, Whitespace(), ByteLevel(add_prefix_space=True)])
def test_another_rule_is_refused(rule: PreTokenizer | None) -> None:
    expected = "tokenizer.json: expected a tokenizer that splits texts as one of llama-bpe, qwen2, "
    with pytest.raises(ExportError, match=expected):
        rule_of(rule)
