"""The tokenizer of a folder of ``transformers``, as llama.cpp has it in a GGUF file."""

import json
import re
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from tokenizers import Tokenizer

from octavo.deploy.gguf_splitting import splitting_rule
from octavo.errors import ExportError

__all__ = ["add_tokenizer"]

TOKENIZER = "tokenizer.json"
SPACE = "▁"
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def add_tokenizer(writer: GGUFWriter, folder: Path | None, config: Any) -> None:
    """Add the tokenizer of ``folder``; without ``tokenizer.json`` the file has none, and llama.cpp
    takes and gives token numbers.

    Raises:
        ExportError: a tokenizer of another kind than byte-level BPE, or BPE with a token for each
            byte, as that of Llama 2; or byte-level BPE that splits texts by a rule that this form
            does not know.

    """
    if folder is None or not (folder / TOKENIZER).is_file():
        writer.add_tokenizer_model("no_vocab")
        return
    path = folder / TOKENIZER
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model["type"] != "BPE":
        raise ExportError(f"{path}: expected a BPE tokenizer, got {model['type']}")
    tokens = _tokens(tokenizer, config.vocab_size)
    special = {each["content"] for each in tokenizer.get("added_tokens", []) if each["special"]}
    by_bytes = bool(model.get("byte_fallback"))
    runnable = Tokenizer.from_file(str(path))
    if by_bytes:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(tokens, model["merges"]))
        first = runnable.encode("a", add_special_tokens=False).tokens[0]
        writer.add_add_space_prefix(first.startswith(SPACE))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting_rule(runnable, path))
    writer.add_token_list(tokens)
    writer.add_token_types([_type(token, special, by_bytes) for token in tokens])
    vocabulary = SpecialVocab(folder, load_merges=not by_bytes, n_vocab=len(tokens))
    # llama.cpp adds a first token unless the file says that there is none.
    vocabulary.add_special_token = _added(runnable) | vocabulary.add_special_token
    vocabulary.add_to_gguf(writer, quiet=True)


def _added(tokenizer: Tokenizer) -> dict[str, bool]:
    """Tell whether a token is added before a text, and whether one is added after it."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    return {"bos": whole[:1] != bare[:1], "eos": whole[-1:] != bare[-1:]}


def _tokens(tokenizer: dict[str, Any], size: int) -> list[str]:
    """Return the text of each token; numbers that no token has get a text of their own."""
    numbers = dict(tokenizer["model"]["vocab"])
    numbers |= {each["content"]: each["id"] for each in tokenizer.get("added_tokens", [])}
    texts = {number: text for text, number in numbers.items()}
    return [texts.get(number, f"[PAD{number}]") for number in range(max(size, max(texts) + 1))]


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """Return llama.cpp's score of each token: pairs that are merged earlier have a higher one."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(parts), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _type(token: str, special: set[str], by_bytes: bool) -> TokenType:
    if token in special:
        return TokenType.CONTROL
    return TokenType.BYTE if by_bytes and BYTE.fullmatch(token) else TokenType.NORMAL
