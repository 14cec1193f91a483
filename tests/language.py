"""A small random language model of ``transformers``, and a tokenizer for it."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ("<unk>", "<s>", "</s>")


def llama(*, tied: bool = True, columns: int = 96, vocabulary: int = 300) -> Any:
    """Return a Llama of two layers whose tensors are exact in float16 and bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=columns,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.bfloat16())
            if value.dim() == 1:
                value.mul_(1 + torch.randint(-3, 4, value.shape) / 16)
    return model.eval()


def tokens(rows: int = 8, vocabulary: int = 300) -> dict[str, torch.Tensor]:
    """Return a batch of random sequences of 16 tokens."""
    torch.manual_seed(1)
    return {"input_ids": torch.randint(3, vocabulary, (rows, 16))}


def write_tokenizer(folder: Path) -> None:
    """Write a BPE tokenizer with a token for each byte, as that of Llama 2 has."""
    letters = "▁abcdefghijklmnopqrstuvwxyz."
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "n"), ("▁", "s")]
    texts = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        *("".join(pair) for pair in pairs),
    ]
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "fuse_unk": True,
        "vocab": {text: number for number, text in enumerate(texts)},
        "merges": [list(pair) for pair in pairs],
    }
    added = [
        {"id": number, "content": text, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for number, text in enumerate(SPECIAL)
    ]  # fmt: skip
    prepend = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": model,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | kind))
