"""Memory of calibration above the model, by the number of inputs; each row is a process of its own.

    python benchmarks/memory.py

A convolutional network of 0.3 MB and images of 32 x 32 pixels. Without ``sequential``, inputs are
streamed: memory does not grow with their number. With it, the inputs are in memory, 12 KiB each,
and what all of them have become at one boundary between layers, up to 512 MiB of it
(``octavo.network.spilling.BOUND``); the rest is on disk. The peak is ``VmHWM`` of Linux, less that
of the same process before calibration. glibc is told to give large blocks back as soon as they are
free, because what it keeps for later varies from run to run. Writes benchmarks/results/memory.json.
"""

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo import Plan, calibrate
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "memory.json"
IMAGES = (256, 1024, 4096, 16384)
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
BATCH = 64
BITS = 4


def network() -> nn.Sequential:
    """Return a plain network of eight convolutions, about as large as ResNet-8."""
    torch.manual_seed(0)
    widths = [3, 16, 16, 16, 32, 32, 64, 64]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        stride = 2 if number in (3, 5) else 1
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def images(count: int) -> Iterator[Tensor]:
    """Yield batches that are made as they are asked for."""
    for number in range(count // BATCH):
        yield torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(number))


def peak() -> int:
    """Return the most memory that this process has had so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise OSError


def measure(count: int, *, sequential: bool) -> int:
    """Return the bytes that calibration takes above the peak before it."""
    model = network()
    plan = Plan.uniform(model, BITS)
    calibrate(model, plan, images(BATCH), sequential=sequential)  # what torch loads once
    before = peak()
    calibrate(model, plan, images(count), sequential=sequential)
    return peak() - before


def main() -> None:
    rows = []
    for way in ("sequential", "streamed"):
        for count in IMAGES:
            command = [sys.executable, __file__, way, str(count)]
            found = subprocess.run(
                command, env=os.environ | GIVES_BACK, check=True, capture_output=True, text=True
            )
            rows.append({"way": way, "images": count, "mb": round(int(found.stdout) / 2**20)})
            print(rows[-1], flush=True)
    write_json(RESULT, {"bits": BITS, "batch": BATCH, "rows": rows})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(measure(int(sys.argv[2]), sequential=sys.argv[1] == "sequential"))
    else:
        main()
