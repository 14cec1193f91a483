"""Time of `PowerOfTwo.project` beside `torch.clone`, on 64 M float32 weights.

    python benchmarks/projection.py

Both run in turn in one process. Writes benchmarks/results/projection.json: for each bit-width and
granularity the median of the paired ratios.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from octavo.formats.powers_of_two import PowerOfTwo
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

COUNT = 64_000_000
REPEATS = 9
SEED = 0
RESULT = Path(__file__).parent / "results" / "projection.json"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(weight: torch.Tensor, codebook: PowerOfTwo) -> tuple[float, float, float]:
    codebook.project(weight), weight.clone()
    pairs = [
        (seconds(lambda: codebook.project(weight)), seconds(weight.clone)) for _ in range(REPEATS)
    ]
    project, clone = (statistics.median(column) for column in zip(*pairs, strict=True))
    return project, clone, statistics.median(a / b for a, b in pairs)


def main() -> None:
    weight = torch.randn(COUNT, generator=torch.Generator().manual_seed(SEED)) * 0.05
    cases = {
        "per layer": ((COUNT,), ()),
        "8,000 channels": ((8000, 8000), (8000,)),
        "1,000,000 channels": ((-1, 64), (COUNT // 64,)),
    }
    rows = []
    for bits in (2, 3, 4, 5):
        for label, (shape, tops) in cases.items():
            codebook = PowerOfTwo(bits, torch.full(tops, -3))
            project, clone, ratio = measure(weight.view(shape), codebook)
            rows.append(
                {
                    "bits": bits,
                    "per": label,
                    "project_s": round(project, 4),
                    "clone_s": round(clone, 4),
                    "ratio": round(ratio, 2),
                }
            )
            print(rows[-1])
    content = {
        "weights": COUNT,
        "repeats": REPEATS,
        "seed": SEED,
        "environment": environment(),
        "rows": rows,
    }
    write_json(RESULT, content)


if __name__ == "__main__":
    main()
