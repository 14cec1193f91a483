"""stories260K, a Llama of 260,032 weights, and its stories: what two benchmarks load."""

import json
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

__all__ = ["LLAMA", "load"]

LLAMA = Path("~/.cache/octavo/stories260k.safetensors").expanduser()


def load(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the network in full precision, and its tokens by name: those for calibration, and
    those of the test. Beside the file of weights and tokens is the configuration.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    tensors = safetensors.torch.load_file(path)
    names = ("calibration_tokens", "test_tokens")
    tokens = {name: tensors.pop(name).long() for name in names}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # it is the embedding
    model = LlamaForCausalLM(LlamaConfig(**described["config"], use_cache=False))
    model.load_state_dict(tensors)
    network: nn.Module = model.eval()
    return network, tokens
