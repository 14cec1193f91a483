"""Time of calibration beside that of an older octavo, on one core.

    git worktree add ../older 5dc0b46
    python benchmarks/ptq_against.py ../older

ResNet-20, 3 bits, 1,024 CIFAR-10 images. The two take turns, each run in a process of its own with
one thread, so that what else runs on the machine meets both alike. Seconds are those that the
process computes during ``calibrate``. Writes benchmarks/results/ptq-against.json after each pair
of runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import octavo
from octavo import Plan, calibrate
from octavo.runs.tasks.cifar10 import Cifar10

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "ptq-against.json"
BITS = 3


def measure() -> float:
    """Return the seconds that one calibration computes, with the octavo that was imported."""
    torch.set_num_threads(1)
    task = Cifar10(depth=20, weights="~/.cache/octavo/resnet20-cifar10.safetensors")
    model, images = task.model(), list(task.calibration())
    plan = Plan.uniform(model, BITS)
    start = time.process_time()
    calibrate(model, plan, images)
    return time.process_time() - start


def run(checkout: Path) -> float:
    """Measure the octavo of a checkout once."""
    source = checkout.resolve() / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, __file__, "--one"],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds, where = found.stdout.split(maxsplit=1)
    if source not in Path(where.strip()).parents:
        raise SystemExit(f"{checkout}: expected an octavo in {source}, got {where.strip()}")
    return float(seconds)


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def compare(older: Path, runs: int) -> None:
    """Let both take turns, and write what they took."""
    from octavo.runs.run import environment
    from octavo.runs.run_folder import write_json

    seconds: dict[str, list[float]] = {"older": [], "this": []}
    for _ in range(runs):
        seconds["older"].append(round(run(older), 2))
        seconds["this"].append(round(run(HERE.parent), 2))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        result = {
            "environment": environment(),
            "bits": BITS,
            "images": 1024,
            "commits": {"older": commit(older), "this": commit(HERE.parent)},
            "seconds": seconds,
            "median_s": medians,
            "ratio": round(medians["this"] / medians["older"], 3),
        }
        write_json(RESULT, result)
        print({name: values[-1] for name, values in seconds.items()}, result["ratio"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("older", nargs="?", type=Path, help="a checkout of an older commit")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(measure(), octavo.__file__)
    elif given.older is None:
        parser.error("expected a checkout of an older commit")
    else:
        compare(given.older, given.runs)


if __name__ == "__main__":
    main()
