"""Cost of retraining with frozen weights, beside plain training: time of a step, and memory.

    python benchmarks/retraining.py

The pretrained ResNet-20 on CIFAR-10, batch 128, SGD with Nesterov momentum. The two networks take
their steps on the same batches, in one process, and take turns in going first. Memory is the bytes
of the buffers that freezing adds, plus what its graph keeps alive between forward and backward
pass. Writes benchmarks/results/retraining.json.
"""

import copy
import gc
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Incremental, Plan
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

STEPS = 60
WARMUP = 5
BATCH = 128
SEED = 0
RESULT = Path(__file__).parent / "results" / "retraining.json"


def stepper(model: nn.Module) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)

    def step(images: Tensor, labels: Tensor) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes of every distinct tensor storage that lives while the graph of one forward
    pass does.
    """
    loss = model(images).sum()
    gc.collect()
    storages = {}
    saved: list[Tensor] = []
    nodes = [loss.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved += [
            getattr(node, name)
            for name in dir(node)
            if name.startswith("_saved_") and "raw" not in name
        ]
        saved += list(getattr(node, "saved_tensors", ()))
        nodes += [parent for parent, _ in node.next_functions]
    for tensor in [*saved, *model.parameters(), *model.buffers()]:
        if isinstance(tensor, Tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def main() -> None:
    torch.manual_seed(SEED)
    task = Cifar10(weights="~/.cache/octavo/resnet20-cifar10.safetensors", batch=BATCH)
    plain = task.model().train()
    held = copy.deepcopy(plain)
    incremental = Incremental(held, Plan.uniform(held, 3), portions=(0.5, 1.0))
    next(iter(incremental))
    batches = list(itertools.islice(task.train_batches(), WARMUP + STEPS))
    weights = sum(Plan.uniform(plain, 3).weights.values())
    extra = (kept_bytes(held, batches[0][0]) - kept_bytes(plain, batches[0][0])) / weights
    steps = stepper(held), stepper(plain)
    pairs = []
    for index, (images, labels) in enumerate(batches):
        order = (0, 1) if index % 2 else (1, 0)
        took = {which: steps[which](images, labels) for which in order}
        pairs.append((took[0], took[1]))
    pairs = pairs[WARMUP:]
    ratio = statistics.median(a / b for a, b in pairs)
    row = {
        "network": "ResNet-20, pretrained, on CIFAR-10",
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
    RESULT.write_text(
        json.dumps({"seed": SEED, "environment": environment(), **row}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
