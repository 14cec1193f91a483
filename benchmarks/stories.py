"""Incremental quantization of a language model onto FP4: stories260K, taught by itself.

    python benchmarks/stories.py                        # about forty minutes of one core

The network (``--llama``: the file of its weights and tokens; beside it is its configuration) writes
2,112 stories of 200 tokens at temperature 1. INQ freezes it onto FP4, one exponent for each 32
inputs, the embedding onto 6 bits. After each of 12 portions it is retrained for 600 steps of 16
stories, by the KL divergence to the network in full precision; after the last one, only the norms
train. Nothing is trained on 64 of the stories. The divergence on these chose the learning rate and
the portions; the rivals were 5 portions of 200, 400 and 800 steps, 8 portions of 600, a quarter of
the stories, a rate of 0.001, and free weights at their levels from a portion of 0.4 on. The test is
the 32 stories of the file: perplexity, and divergence to full precision. Writes
benchmarks/results/stories.json.
"""

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from llama import LLAMA, load  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn

from octavo import Incremental, Packed, Plan, calibrate
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "stories.json"
STORIES = 2112
HELD_OUT = 64
LENGTH = 200
BATCH = 16
PORTIONS = (0.2, 0.35, 0.5, 0.62, 0.72, 0.8, 0.87, 0.92, 0.95, 0.975, 0.99, 1.0)
STEPS = 600  # after each portion; after the last one, only the norms train
RATE = 3e-3  # at the start of each stage
PER: Any = ("group", 32)


@torch.no_grad()
def written(model: nn.Module, first: int) -> Tensor:
    """Return stories that the network writes: (STORIES, LENGTH)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((STORIES, 1), first)
    cache = None
    for _ in range(LENGTH - 1):
        output = model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        chances = output.logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
    return tokens


def expected(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logarithms of the probabilities that a network expects: (stories, tokens, 512)."""
    logits: Tensor = model(input_ids=tokens).logits
    return logits.log_softmax(-1)


def divergence(found: Tensor, of_teacher: Tensor) -> Tensor:
    """Return the mean KL divergence of a token from what the teacher expects, in nats."""
    return F.kl_div(found, of_teacher.float(), reduction="none", log_target=True).sum(-1).mean()


@torch.no_grad()
def figures(model: nn.Module, teacher: nn.Module, tokens: Tensor) -> dict[str, float]:
    """Return the perplexity of stories, and the divergence on them."""
    found = expected(model, tokens)
    perplexity = math.exp(F.nll_loss(found[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
    return {
        "perplexity": round(perplexity, 3),
        "divergence": round(float(divergence(found, expected(teacher, tokens))), 5),
    }


def retrain(
    model: nn.Module, stories: Tensor, of_teacher: Tensor, generator: torch.Generator
) -> None:
    """Retrain by the divergence to full precision, with a learning rate that falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        picked = torch.randint(len(stories), (BATCH,), generator=generator)
        optimizer.zero_grad()
        divergence(expected(model, stories[picked]), of_teacher[picked]).backward()
        optimizer.step()
        schedule.step()


def plan_of(model: nn.Module) -> Plan:
    """Return FP4 for all layers but the embedding, which has 6 bits."""
    plan = Plan.uniform(model, "fp4")
    plan["model.embed_tokens"] = "fp6"
    return plan


def quantized(model: nn.Module, stories: Tensor) -> Packed:
    """Freeze and retrain a copy of the network."""
    with torch.no_grad():  # in halves, since they take the most memory
        of_teacher = torch.cat([expected(model, part).half() for part in stories.split(64)])
    student = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    inputs = [{"input_ids": part} for part in stories[:HELD_OUT].split(BATCH)]
    incremental = Incremental(student, plan_of(student), portions=PORTIONS, per=PER, inputs=inputs)
    for stage in incremental:
        print(f"{stage.portion:g} of the weights are frozen", flush=True)
        retrain(student, stories, of_teacher, generator)
    return incremental.finish()


def row(model: nn.Module, packed: Packed, tokens: Tensor) -> dict[str, Any]:
    """Return the size and the figures of a packed network."""
    network = copy.deepcopy(model)
    packed.apply(network)
    size = {"stored_bits": round(packed.stored_bits, 3), "file_bytes": packed.file_bytes}
    return size | figures(network, model, tokens)


def main() -> None:
    """Measure the closed form and INQ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--llama", type=Path, default=LLAMA)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, tokens = load(arguments.llama)
    test = tokens["test_tokens"]
    stories = written(model, int(test[0, 0]))
    held_out, trained = stories[:HELD_OUT], stories[HELD_OUT:]

    inputs = [{"input_ids": part} for part in trained[:HELD_OUT].split(BATCH)]
    closed = calibrate(model, plan_of(model), inputs, per=PER)
    result: dict[str, Any] = {
        "full precision": figures(model, model, test),
        "calibrate": row(model, closed, test),
    }
    write_json(RESULT, result)
    packed = quantized(model, trained)
    result["held out"] = row(model, packed, held_out)
    result["INQ"] = row(model, packed, test)
    result |= {"steps": STEPS, "stories": STORIES - HELD_OUT, "environment": environment()}
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
