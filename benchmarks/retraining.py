"""Cost of retraining with frozen weights, beside plain training: time of a step, and memory.

    python benchmarks/retraining.py                     # on a quiet machine

The pretrained ResNet-20 on CIFAR-10, batch 128, SGD with Nesterov momentum. Half of the weights are
frozen; the other half trains as it is, or sees its levels (``straight_through``). The networks take
their steps on the same batches, in one process, and take turns in going first. Ratios are medians
over the steps. Memory is the bytes of the buffers that freezing adds, plus what its graph keeps
alive between forward and backward pass. Writes benchmarks/results/retraining.json.
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
from octavo.runs.run_folder import write_json
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


def networks(task: Cifar10) -> dict[str, nn.Module]:
    """Return the network without parametrizations, half frozen, and with straight-through too."""
    plain = task.model().train()
    found: dict[str, nn.Module] = {"plain": plain}
    for name, since in (("half frozen", 1.0), ("straight through", 0.5)):
        found[name] = copy.deepcopy(plain)
        plan = Plan.uniform(plain, 3)
        stages = Incremental(found[name], plan, portions=(0.5, 1.0), straight_through=since)
        next(iter(stages))
    return found


def main() -> None:
    torch.manual_seed(SEED)
    task = Cifar10(weights="~/.cache/octavo/resnet20-cifar10.safetensors", batch=BATCH)
    models = networks(task)
    batches = list(itertools.islice(task.train_batches(), WARMUP + STEPS))
    weights = sum(Plan.uniform(models["plain"], 3).weights.values())
    kept = {name: kept_bytes(model, batches[0][0]) for name, model in models.items()}
    steps = {name: stepper(model) for name, model in models.items()}
    orders = itertools.cycle(itertools.permutations(steps))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for (images, labels), order in zip(batches, orders, strict=False):
        for name in order:
            seconds[name].append(steps[name](images, labels))
    rows = {}
    for name, own in seconds.items():
        ratios = [one / other for one, other in zip(own, seconds["plain"], strict=True)]
        rows[name] = {
            "step_s": round(statistics.median(own[WARMUP:]), 4),
            "step_ratio": round(statistics.median(ratios[WARMUP:]), 4),
            "extra_bytes_per_weight": round((kept[name] - kept["plain"]) / weights, 2),
        }
    about = {"network": "ResNet-20, pretrained, on CIFAR-10", "batch": BATCH, "steps": STEPS}
    result = {"seed": SEED, "environment": environment(), **about, "rows": rows}
    write_json(RESULT, result)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
