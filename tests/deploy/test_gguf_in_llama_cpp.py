"""llama.cpp reads the form ``gguf``: the logits of the network, and the tokens of its tokenizer."""

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language import llama, tokens, write_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from octavo.deploy import gguf_splitting
from octavo.deploy.exporting import export_checked
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate

pytest.importorskip("cyllama", reason="cyllama has wheels of llama.cpp")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXTS = (gguf_splitting.PROBE, "the cat and the hat<s> sat.", "an  then\n the", "")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "llama_cpp.py"))


def qwen() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        use_cache=False,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("model", "bits", "limit"),
    [
        (llama(), 8, 1e-5),  # F16
        (llama(), "fp4", 5e-3),  # MXFP4: llama.cpp rounds inputs to 8 bits
        (llama(columns=256, tied=False), 2, 5e-3),  # TQ1_0 and MXFP4
        (qwen(), "fp4", 5e-3),
    ],
)
def test_the_logits_are_those_of_the_packed_network(
    model: Any, bits: Any, limit: float, engine: dict[str, Any], tmp_path: Path
) -> None:
    packed = calibrate(model, Plan.uniform(model, bits, include="*_proj"), [tokens()])
    export_checked(model, packed, tmp_path / "net.gguf", form="gguf")
    network = copy.deepcopy(model)
    packed.apply(network)
    sequences = tokens()["input_ids"]
    with torch.no_grad():
        expected = network(input_ids=sequences).logits
    found = engine["logits"](tmp_path / "net.gguf", sequences.tolist(), 300)
    assert engine["divergence"](expected, found) < limit


def export_with(folder: Path) -> Path:
    model = llama()
    model.config._name_or_path = model.name_or_path = str(folder)
    packed = calibrate(model, Plan.uniform(model, 4, include="*_proj"), [tokens()])
    export_checked(model, packed, folder / "net.gguf", form="gguf")
    return folder / "net.gguf"


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("spaced", [True, False])
def test_the_tokens_of_a_tokenizer_with_a_token_for_each_byte(
    begins: bool, spaced: bool, engine: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    if not spaced:
        del tokenizer["normalizer"]["normalizers"][0]
    path.write_text(json.dumps(tokenizer))
    check_tokens(engine, tmp_path, begins=begins)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("rule", gguf_splitting._rules().values(), ids=gguf_splitting._rules())
def test_the_tokens_of_a_byte_level_tokenizer(
    begins: bool, rule: PreTokenizer, engine: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = rule
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "12345 45 123 I'LL I'LL x9y\n\n two  three"], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    check_tokens(engine, tmp_path, begins=begins)


def check_tokens(engine: dict[str, Any], folder: Path, *, begins: bool) -> None:
    """Check that llama.cpp has the tokens of a tokenizer that begins with ``<s>``, or does not."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    found = engine["token_numbers"](export_with(folder), TEXTS)
    for text, numbers in zip(TEXTS, found, strict=True):
        assert numbers == tokenizer.encode(text).ids, text
