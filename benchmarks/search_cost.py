"""What a search costs: trials against bare forward passes and a loop that quantizes anew; how it
grows with layers and trials.

    python benchmarks/search_cost.py

The networks are ResNet-20, 56 and 110 as they are built, not trained: the cost does not depend on
the weights. One thread, 128 images, medians of interleaved rounds after one that is not counted.
Writes benchmarks/results/search_cost.json. The trials in that file, which returned outputs of
unchanged modules from memory, were taken before this memory was deleted: plans that differ in few
layers ("similar") took 0.83, 0.95 and 1.00 of a bare pass with it.
"""

import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from octavo import Budget, Plan, calibrate, search
from octavo.dnq.environment import Environment
from octavo.dnq.survey import survey
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "search_cost.json"
IMAGES, BATCH, WARM, ROUNDS, PLANS = 128, 32, 1, 9, 8
OPTIONS = (2, 3, 4, 5)
THREE_BITS = OPTIONS.index(3)


def seconds(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def naive(model: nn.Module, batches: list[torch.Tensor], plan: Plan) -> float:
    """A trial without a cache: quantize the layers in closed form, then run the inputs."""
    quantized = copy.deepcopy(model)
    calibrate(model, plan, batches, sequential=False).apply(quantized)
    with torch.no_grad():
        pairs = [
            (quantized(batch).log_softmax(1), model(batch).log_softmax(1)) for batch in batches
        ]
    return sum(
        float(F.kl_div(own, target, reduction="sum", log_target=True)) for own, target in pairs
    )


def trials(depth: int) -> dict[str, float]:
    """Seconds a trial of random plans, of plans that differ in few layers, of a bare forward pass,
    and of the naive loop.
    """
    task = Cifar10(depth, calibration_size=IMAGES, batch=BATCH)
    model, batches = task.model(), list(task.calibration())
    space = survey(model, batches[0], OPTIONS, {})
    trial = Environment(model, space.names, batches, space.actions)
    drawn, took = random.Random(0), dict[str, list[float]]()

    def plans(change: float) -> list[tuple[int, ...]]:
        return [
            tuple(
                drawn.randrange(len(OPTIONS)) if drawn.random() < change else THREE_BITS
                for _ in space.names
            )
            for _ in range(PLANS)
        ]

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            model(batch)

    works: dict[str, tuple[Callable[[], Any], int]] = {
        "bare": (bare, 1),
        "random": (lambda: trial.objectives(plans(1.0)), PLANS),
        "similar": (lambda: trial.objectives(plans(0.1)), PLANS),
    }
    for _ in range(WARM + ROUNDS):
        for name, (work, count) in works.items():
            took.setdefault(name, []).append(seconds(work) / count)
    result = {name: statistics.median(times[WARM:]) for name, times in took.items()}
    result["naive"] = seconds(lambda: naive(model, batches, space.plan(plans(1.0)[0])))
    return result


def whole(depth: int, count: int) -> float:
    """Seconds of a search with so many trials."""
    task = Cifar10(depth, calibration_size=IMAGES, batch=BATCH)
    model, batches = task.model(), list(task.calibration())
    return seconds(lambda: search(model, batches, budget=Budget(average_bits=3.0), trials=count))


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "environment": environment(),
        "images": IMAGES,
        "trial_s": {},
        "search_s": {},
    }
    for depth in (20, 56, 110):
        result["trial_s"][f"resnet{depth}"] = trials(depth)
        print(depth, result["trial_s"][f"resnet{depth}"], flush=True)
    for depth, count in ((20, 512), (56, 512), (110, 512), (20, 1024), (20, 2048)):
        result["search_s"][f"resnet{depth}/{count}"] = whole(depth, count)
        print(depth, count, result["search_s"][f"resnet{depth}/{count}"], flush=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
