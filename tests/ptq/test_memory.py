"""The memory of calibration above the model, measured in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, warnings
from pathlib import Path
import torch
from torch import nn
from octavo import Plan, calibrate
from octavo.network import spilling

warnings.simplefilter("ignore")
torch.set_num_threads(1)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))  # in kB

def images(count):
    for _ in range(count):
        yield torch.randn(48, 3, 32, 32)

model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()).eval()
plan = Plan.uniform(model, 4)
sequential = sys.argv[2] == "sequential"
calibrate(model, plan, images(3), sequential=sequential)
before = peak()
spilling.Spill.__init__.__defaults__ = (16 << 20,)
calibrate(model, plan, images(int(sys.argv[1])), sequential=sequential)
print(peak() - before)
"""
# 24 batches are 14 MB of inputs, and 66 MB of what becomes of them at the second layer. What is set
# aside for the measurement, 64 samples at most, is in memory.
ALLOWED_KB = 28 << 10
# The inputs, 16 MB of what becomes of them, and one batch that goes on. Without a bound it is
# 200 MB: both networks wait, and the one in full precision has its output too.
ALLOWED_SEQUENTIAL_KB = 72 << 10
# glibc gives large blocks back as soon as they are free: what it keeps for later varies from run to
# run by 100 MB.
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's process status")
@pytest.mark.parametrize(
    ("way", "allowed"), [("streamed", ALLOWED_KB), ("sequential", ALLOWED_SEQUENTIAL_KB)]
)
def test_calibration_has_a_bound_on_its_memory(way: str, allowed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "24", way],
        env=os.environ | GIVES_BACK,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < allowed
