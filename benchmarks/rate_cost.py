"""The time of ``calibrate`` with a rate, relative to that without.

    python benchmarks/rate_cost.py

ResNet-20, 1,024 training images of CIFAR-10, one thread, processor time. Both take turns; the
medians of several runs are reported. Writes benchmarks/results/rate_cost.json.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octavo import Plan, calibrate
from octavo.formats.width import read_width
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "rate_cost.json"
REPEATS = 3
IMAGES = 1024
WAYS: dict[str, tuple[int | str, float, bool]] = {  # the width, the rate, and absorb
    "4 bits": (4, 1.5, False),
    "4 bits, absorb": (4, 1.5, True),
    "apot5, absorb": ("apot5", 13, True),
}


def seconds(model: nn.Module, images: list[Tensor], width: Any, **settings: Any) -> float:
    plan = Plan.uniform(model, read_width(width))
    start = time.process_time()
    calibrate(model, plan, images, **settings)
    return time.process_time() - start


def measured(model: nn.Module, images: list[Tensor], way: tuple[Any, float, bool]) -> Any:
    width, rate, absorb = way
    pairs = [
        [seconds(model, images, width, absorb=absorb, rate=one) for one in (0.0, rate)]
        for _ in range(REPEATS)
    ]
    without, with_rate = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(after / before for before, after in pairs)
    return {
        "rate": rate,
        "without_s": round(without, 2),
        "with_s": round(with_rate, 2),
        "ratio": round(ratio, 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    weights = "~/.cache/octavo/resnet20-cifar10.safetensors"
    cifar = Cifar10(depth=20, weights=weights, calibration_size=IMAGES)
    model = cifar.model()
    images = list(cifar.calibration())
    rows = {}
    for name, way in WAYS.items():
        rows[name] = measured(model, images, way)
        print(name, rows[name], flush=True)
    result = {"images": IMAGES, "repeats": REPEATS, "environment": environment(), "rows": rows}
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
