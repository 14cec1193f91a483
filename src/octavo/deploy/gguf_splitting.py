"""llama.cpp's name of the rule by which a byte-level tokenizer splits texts before its merges.

The file names a rule, and llama.cpp has the code of each. So a tokenizer is compared with the known
rules by what it does to a text.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from octavo.errors import ExportError

__all__ = ["splitting_rule"]

# Contractions, cases, digits, line ends, spaces in a row: all rules split this text differently.
PROBE = (
    "It's I'LL don't 12345 x9y getURL(aB) naïve ½ Ⅷ 日本語\n\n  two \t three...!!\r\n/ end//\n  "
)
SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASES = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"


def splitting_rule(tokenizer: Tokenizer, path: Path) -> str:
    """Return the name of the rule by which a tokenizer splits texts.

    Args:
        tokenizer: a tokenizer with byte-level BPE.
        path: its file, for errors.

    Raises:
        ExportError: it splits texts by none of the rules.

    """
    rules = _rules()
    if tokenizer.pre_tokenizer is not None:
        found = tokenizer.pre_tokenizer.pre_tokenize_str(PROBE)
        for name, rule in rules.items():
            if rule.pre_tokenize_str(PROBE) == found:
                return name
    raise ExportError(
        f"{path}: expected a tokenizer that splits texts as one of {', '.join(rules)} does, got "
        "another rule; without this file, llama.cpp takes and gives token numbers"
    )


def _rules() -> dict[str, PreTokenizer]:
    gpt2 = ByteLevel(add_prefix_space=False)
    return {
        "llama-bpe": _by(rf"{WORDS}|\p{{N}}{{1,3}}|{SYMBOLS}"),
        "qwen2": _by(rf"{WORDS}|\p{{N}}|{SYMBOLS}"),
        "tekken": _by(rf"{CASES}|\p{{N}}|{SYMBOLS}".replace(r"[\r\n]*", r"[\r\n/]*")),
        "gpt-2": gpt2,
        "smollm": Sequence([Digits(individual_digits=True), gpt2]),
    }


def _by(pattern: str) -> PreTokenizer:
    """Return the rule that splits a text into the matches of a pattern."""
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(False, use_regex=False)])
