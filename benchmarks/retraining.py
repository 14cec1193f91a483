"""Cost of retraining with frozen weights against plain training: time of paired steps, and extra memory a weight.

    python benchmarks/retraining.py

ResNet-20, batch 128, random images, SGD with Nesterov momentum. The two networks take their steps in turn, in one process.
Memory: bytes of the buffers that freezing adds, plus what its graph keeps alive between forward and backward pass.
Writes benchmarks/results/retraining.json.
"""

import copy
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Incremental, Plan
from octavo.run import environment
from octavo.tasks.resnet import resnet

STEPS, WARMUP, BATCH, SEED = 60, 5, 128, 0
RESULT = Path(__file__).parent / "results" / "retraining.json"


def stepper(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of every distinct tensor storage that lives while the graph of one forward pass does."""
    loss = model(images).sum()
    gc.collect()
    storages = {}
    saved: list[Tensor] = []
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved += [getattr(node, name) for name in dir(node) if name.startswith("_saved_") and "raw" not in name]
        saved += list(getattr(node, "saved_tensors", ()))
        nodes += [parent for parent, _ in node.next_functions]
    for tensor in [*saved, *model.parameters(), *model.buffers()]:
        if isinstance(tensor, Tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def main() -> None:
    torch.manual_seed(SEED)
    plain = resnet(20)
    held = copy.deepcopy(plain)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    incremental = Incremental(held, Plan.uniform(held, 3), portions=(0.5, 1.0))
    next(iter(incremental))
    weights = sum(Plan.uniform(plain, 3).weights.values())
    extra = (kept_bytes(held, images) - kept_bytes(plain, images)) / weights
    steps = stepper(held, images, labels), stepper(plain, images, labels)
    pairs = [(steps[0](), steps[1]()) for _ in range(WARMUP + STEPS)][WARMUP:]
    ratio = statistics.median(a / b for a, b in pairs)
    row = {
        "network": "ResNet-20",
        "batch": BATCH,
        "steps": STEPS,
        "step_ratio": round(ratio, 4),
        "extra_bytes_per_weight": round(extra, 2),
    }
    row |= {
        "step_s": round(statistics.median(a for a, _ in pairs), 4),
        "plain_step_s": round(statistics.median(b for _, b in pairs), 4),
    }
    print(row)
    RESULT.write_text(json.dumps({"seed": SEED, "environment": environment(), **row}, indent=2) + "\n")


if __name__ == "__main__":
    main()
