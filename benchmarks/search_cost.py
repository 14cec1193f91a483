"""Cost of a search: a trial beside a bare forward pass, and growth with layers and trials.

    python benchmarks/search_cost.py

ResNet-20, 56 and 110 as they are built, not trained: the cost does not depend on the weights. One
thread, 128 images, medians of rounds in turn. The naive trial quantizes its layers again. Writes
benchmarks/results/search_cost.json.
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
from octavo.dnq.space import Choice
from octavo.dnq.survey import survey
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "search_cost.json"
IMAGES = 128
BATCH = 32
WARM = 1
ROUNDS = 9
PLANS = 8
OPTIONS = (2, 3, 4, 5)


def seconds(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def naive(model: nn.Module, batches: list[torch.Tensor], plan: Plan) -> float:
    """Run a trial without a cache: calibrate the layers, then run the inputs."""
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
    """Return the seconds of a bare forward pass, of a trial, and of the naive loop."""
    task = Cifar10(depth, calibration_size=IMAGES, batch=BATCH)
    model = task.model()
    batches = list(task.calibration())
    space = survey(model, batches[0], OPTIONS, {})
    trial_environment = Environment(model, space.names, batches, space.actions)
    drawn = random.Random(0)

    def choices() -> list[Choice]:
        return [
            tuple(drawn.randrange(len(actions)) for actions in space.actions) for _ in range(PLANS)
        ]

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            model(batch)

    bare_s: list[float] = []
    random_s: list[float] = []
    for _ in range(WARM + ROUNDS):
        bare_s.append(seconds(bare))
        random_s.append(seconds(lambda: trial_environment.objectives(choices())) / PLANS)
    naive_s = seconds(lambda: naive(model, batches, space.plan(choices()[0])))
    medians = [statistics.median(times[WARM:]) for times in (bare_s, random_s)]
    return dict(zip(("bare", "random"), medians, strict=True)) | {"naive": naive_s}


def whole(depth: int, count: int) -> float:
    """Return the seconds of a search with so many trials."""
    task = Cifar10(depth, calibration_size=IMAGES, batch=BATCH)
    model = task.model()
    batches = list(task.calibration())
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
