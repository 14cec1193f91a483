"""llama.cpp reads octavo's GGUF files: its outputs beside those of the packed network.

    python benchmarks/llama_cpp.py                       # a minute; needs the package cyllama

stories260K (``--llama``: the file of its weights and tokens; beside it is its configuration) is
quantized and exported in several types. Its matrices have too few columns for TQ1_0, so a Llama of
random weights and 256 columns stands for that type. llama.cpp computes the logits of sequences on
the CPU: 32 stories of the test, or 32 random ones. For these types it rounds the inputs of layers
to 8 bits, so its outputs differ by about as much as that does: *rounded inputs* is the packed
network in torch whose linear layers see inputs of 8 bits, one scale for every 32 (256 with TQ1_0).
Divergences are KL divergences of a token from the packed network in torch, in nats. Writes
benchmarks/results/llama-cpp.json.
"""

import argparse
import copy
import importlib.metadata
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from llama import LLAMA, load  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from octavo import Packed, Plan, calibrate, export
from octavo.formats.width import WidthLike
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "llama-cpp.json"
BLOCK = {"TQ1_0": 256}  # inputs that llama.cpp rounds with one scale, where it is not 32


def versions() -> dict[str, str]:
    """Return the versions of cyllama and of the llama.cpp in it."""
    import cyllama

    built = json.loads(Path(cyllama.__file__).with_name("build_config.json").read_text())
    return {
        "cyllama": importlib.metadata.version("cyllama"),
        "llama.cpp": built["versions"]["llama_cpp_version"],
    }


def logits(path: Path, sequences: Sequence[list[int]], vocabulary: int) -> Tensor:
    """Return what llama.cpp computes for sequences of equal length: (sequences, length, tokens)."""
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):  # type: ignore[misc]  # it has no types
        n_vocab = vocabulary  # some versions ask the model for it, which has no such attribute

    llama_cpp.disable_logging()
    llama_cpp.ggml_backend_load_all()
    model = Model(str(path), llama_cpp.LlamaModelParams())
    context = llama_cpp.LlamaContext(model, llama_cpp.LlamaContextParams())
    found = []
    for tokens in sequences:
        context.kv_cache_clear()
        batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        batch.add_sequence(tokens, 0, True)
        context.decode(batch)
        found.append(torch.tensor([context.get_logits_ith(i) for i in range(len(tokens))]))
    return torch.stack(found)


def token_numbers(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return the token numbers that llama.cpp gives texts."""
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    model = llama_cpp.LlamaModel(str(path), llama_cpp.LlamaModelParams())
    vocabulary = model.get_vocab()  # it does not keep the model alive
    return [list(vocabulary.tokenize(text, True, True)) for text in texts]


@torch.no_grad()
def rounded_inputs(network: nn.Module, block: int) -> nn.Module:
    """Return a copy whose linear layers see inputs of 8 bits."""

    def rounded(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        blocks = inputs[0].unflatten(-1, (-1, block))
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return ((blocks / scale).round().mul(scale).flatten(-2),)

    seen = copy.deepcopy(network)
    for module in seen.modules():
        if isinstance(module, nn.Linear) and module.in_features % block == 0:
            module.register_forward_pre_hook(rounded)
    return seen


def divergence(expected: Tensor, found: Tensor) -> float:
    """Return the mean KL divergence of a token, in nats."""
    expected, found = expected.log_softmax(-1), found.log_softmax(-1)
    return float(f"{float((expected.exp() * (expected - found)).sum(-1).mean()):.3g}")


def random_llama() -> tuple[LlamaForCausalLM, Tensor]:
    """Return a Llama of 256 columns with random weights, and random sequences."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.05,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval(), torch.randint(512, (64, 200))


@torch.no_grad()
def compared(model: LlamaForCausalLM, packed: Packed, tokens: Tensor) -> dict[str, Any]:
    """Export the packed network, and return what llama.cpp makes of it."""
    network = copy.deepcopy(model)
    packed.apply(network)
    with tempfile.TemporaryDirectory() as folder:
        path = export(network, packed, Path(folder) / "net.gguf", form="gguf")
        types = Counter(
            tensor.tensor_type.name
            for tensor in gguf.GGUFReader(path).tensors
            if len(tensor.shape) == 2
        )
        found = logits(path, tokens.tolist(), model.config.vocab_size)
    expected = network(input_ids=tokens).logits
    block = max(BLOCK.get(name, 32) for name in types)
    rounded = rounded_inputs(network, block)(input_ids=tokens).logits
    full = model(input_ids=tokens).logits
    same = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    return {
        "types": dict(types),
        "divergence of llama.cpp": divergence(expected, found),
        "divergence of rounded inputs": divergence(expected, rounded),
        "divergence of full precision": divergence(expected, full),
        "same first token, %": round(100 * float(same), 2),
    }


def rows(llama: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each network and what llama.cpp makes of it."""
    model, read = load(llama)
    inputs = [{"input_ids": part} for part in read["calibration_tokens"].split(8)]
    tokens = read["test_tokens"]
    plans: dict[str, WidthLike] = {"F16": "int8", "fp4": "fp4", "2 bits": 2}
    for name, bits in plans.items():
        packed = calibrate(model, Plan.uniform(model, bits), inputs, per=("group", 32))
        yield f"stories260K, {name}", compared(model, packed, tokens)
    model, tokens = random_llama()
    plan = Plan.uniform(model, 2, include="*_proj")
    packed = calibrate(model, plan, [{"input_ids": tokens[32:]}])
    yield "random Llama, 2 bits", compared(model, packed, tokens[:32])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama", type=Path, default=LLAMA)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"networks": dict(rows(arguments.llama))}
    result["environment"] = environment() | versions()
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
