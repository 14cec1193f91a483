"""The memory of INQ, of loading and of applying, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, warnings
from pathlib import Path
import torch
from torch import nn
from octavo import Incremental, Packed

warnings.simplefilter("ignore")
torch.set_num_threads(1)
SIZE = 1536

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))  # in kB

def peak_of(step):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    result = step()
    peaks[step.__name__] = (status("VmHWM") - before) * 1024 / (4 * SIZE * SIZE)
    return result

def journey(model, path):
    def constructor(): return Incremental(model, {"0": 3}, order="relative")
    incremental = peak_of(constructor)
    stages = iter(incremental)
    def freezing(): return next(stages)
    peak_of(freezing)
    list(stages)
    def finish(): return incremental.finish()
    packed = peak_of(finish)
    del incremental, stages
    packed.save(path)
    def load(): return Packed.load(path)
    loaded = peak_of(load)
    def apply(): return loaded.apply(model)
    peak_of(apply)

peaks = {}
journey(nn.Sequential(nn.Linear(8, 8)), sys.argv[1])  # what torch loads once
peaks = {}
journey(nn.Sequential(nn.Linear(SIZE, SIZE, bias=False)), sys.argv[1])
print(json.dumps(peaks))
"""
# glibc gives large blocks back as soon as they are free: what it keeps for later varies from run to
# run.
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
MOST = 4  # times the largest layer in float32, above what is held before a step


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads and resets Linux's process status"
)
def test_no_step_takes_more_than_four_times_the_largest_layer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "net")],
        env=os.environ | GIVES_BACK,
        check=True,
        capture_output=True,
        text=True,
    )
    peaks = json.loads(done.stdout)
    assert set(peaks) == {"constructor", "freezing", "finish", "load", "apply"}
    assert {step: peak for step, peak in peaks.items() if peak > MOST} == {}
    assert peaks["apply"] < 2
