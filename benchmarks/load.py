"""Memory and time of INQ, of loading, and of networks of many layers.

    python benchmarks/load.py

Four parts, each in a process of its own:

- the peak memory of each step of INQ on one large layer, above what is held before it, in units of
  the layer in float32;
- the time of ``Incremental(...)`` on several large layers, in clones of their weights;
- ``Packed.load`` and ``apply`` beside loading the same network in float32 by safetensors, and
  beside their floor: the parts that no reader of the format can do without, by the libraries;
- networks of a few and of many small layers, with a key of the plan for each layer.

Memory is ``VmHWM`` of Linux, which is reset before each step; for the first part, glibc is told to
give large blocks back as soon as they are free. Times are seconds of the processor on one thread.
Writes benchmarks/results/load.json.
"""

import functools
import json
import os
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import safetensors
import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch import nn

from octavo import Incremental, Packed, Plan
from octavo.plan import matching_plan
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "load.json"
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
SIZE = 4096  # inputs and outputs of a large layer: 64 MiB in float32
LARGE_LAYERS = 8
MANY = (1250, 5000)  # layers of a deep network
BITS = 3
RUNS = 5

T = TypeVar("T")


def network(layers: int, size: int) -> nn.Sequential:
    """Return linear layers one after the other."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(layers)))


def status(key: str) -> int:
    """Return an entry of the process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise OSError(key)


def peak_of(step: Callable[[], T]) -> tuple[T, int]:
    """Return what a step returns, and the most bytes that it takes above those held before it."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = step()
    return result, status("VmHWM") - before


def seconds_of(step: Callable[[], T]) -> tuple[T, float]:
    """Return what a step returns, and the seconds of the processor that it takes."""
    start = time.process_time()
    result = step()
    return result, time.process_time() - start


def memory() -> dict[str, Any]:
    """Return the peak of each step on one large layer, in layers."""
    model = network(1, SIZE)
    layer = 4 * SIZE * SIZE
    peaks = {}
    incremental, peaks["constructor"] = peak_of(lambda: Incremental(model, {"0": BITS}))
    held = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / SIZE**2
    stages = iter(incremental)
    peaks["freezing"] = max(peak_of(lambda: next(stages))[1] for _ in incremental.portions)
    packed, peaks["finish"] = peak_of(incremental.finish)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        _, peaks["save"] = peak_of(lambda: packed.save(path))
        loaded, peaks["load"] = peak_of(lambda: Packed.load(path))
    _, peaks["apply"] = peak_of(lambda: loaded.apply(model))
    in_layers = {name: round(peak / layer, 2) for name, peak in peaks.items()}
    return {"layer_bytes": layer, "peaks_in_layers": in_layers, "bytes_a_weight": round(held, 2)}


def constructor() -> dict[str, Any]:
    """Return the time of ``Incremental`` in clones of the weights."""
    model = network(LARGE_LAYERS, SIZE)
    clones = min(seconds_of(lambda: [p.detach().clone() for p in model.parameters()])[1]
                 for _ in range(RUNS))  # fmt: skip
    plan = Plan.uniform(model, BITS)
    _, seconds = seconds_of(lambda: Incremental(model, plan))
    return {
        "layers": LARGE_LAYERS,
        "seconds": round(seconds, 2),
        "clone_seconds": round(clones, 3),
        "clones": round(seconds / clones, 1),
    }


def loading() -> dict[str, Any]:
    """Return the time and memory of ``load`` and ``apply`` beside those of safetensors."""
    model = network(LARGE_LAYERS, SIZE)
    incremental = Incremental(model, Plan.uniform(model, BITS), portions=(1.0,))
    list(incremental)
    packed = incremental.finish()
    bytes_ = 4 * LARGE_LAYERS * SIZE * SIZE
    with TemporaryDirectory() as folder:
        path, plain = Path(folder) / "net.safetensors", Path(folder) / "float.safetensors"
        packed.save(path)
        save_file(model.state_dict(), plain)
        del packed, incremental

        def ours() -> None:
            Packed.load(path).apply(model)

        def theirs() -> None:
            model.load_state_dict(load_file(plain))

        _, peak = peak_of(ours)
        seconds = fastest({"octavo": ours, "safetensors": theirs})
        parts = floor(path, model)
    return {
        "network_bytes": bytes_,
        "peak_in_networks": round(peak / bytes_, 2),
        "peak_in_layers": round(peak * LARGE_LAYERS / bytes_, 2),
        "seconds": {name: round(one, 3) for name, one in seconds.items()},
        "times_safetensors": round(seconds["octavo"] / seconds["safetensors"], 1),
        "floor": {name: round(one, 3) for name, one in parts.items()},
        "floor_times_safetensors": round(sum(parts.values()) / seconds["safetensors"], 1),
        "times_floor": round(seconds["octavo"] / sum(parts.values()), 1),
    }


def floor(path: Path, model: nn.Module) -> dict[str, float]:
    """Return the seconds of the parts that no reader of the format can do without."""
    packed = Packed.load(path)
    codes = [layer.codes.numpy() for layer in packed.layers.values()]
    data: bytes = dict(safetensors.deserialize(path.read_bytes()))[f"codes.{BITS}"]["data"]
    frame = data[data.index(zstandard.FRAME_HEADER) :]
    weights = [(one, one.detach().clone()) for one in model.parameters()]

    def checksums() -> None:
        zlib.crc32(data)
        for one in codes:
            zlib.crc32(one.data)

    def copies() -> None:
        with torch.no_grad():
            for parameter, weight in weights:
                parameter.copy_(weight)

    return fastest({
        "zstandard of the codes": lambda: zstandard.ZstdDecompressor().decompress(frame),
        "CRC-32 of the file and of the codes": checksums,
        "writing the weights": copies,
    })  # fmt: skip


def fastest(steps: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the seconds of each step, of several runs the fewest."""
    return {name: min(seconds_of(step)[1] for _ in range(RUNS)) for name, step in steps.items()}


def many(layers: int) -> dict[str, Any]:
    """Return the seconds of each step on a network of many small layers."""
    model = network(layers, 8)
    keys = {str(number): BITS for number in range(layers)}
    times = {}
    plan, times["matching_plan"] = seconds_of(lambda: matching_plan(model, keys))
    incremental, times["Incremental"] = seconds_of(lambda: Incremental(model, plan))
    _, times["freezing"] = seconds_of(lambda: list(incremental))
    packed, times["finish"] = seconds_of(incremental.finish)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        _, times["save"] = seconds_of(lambda: packed.save(path))
        loaded, times["load"] = seconds_of(lambda: Packed.load(path))
        _, times["save of the plan"] = seconds_of(lambda: plan.save(Path(folder) / "p.yaml"))
        _, times["load of the plan"] = seconds_of(lambda: Plan.load(Path(folder) / "p.yaml"))
    _, times["apply"] = seconds_of(lambda: loaded.apply(model))
    return {"layers": layers, "seconds": {name: round(one, 3) for name, one in times.items()}}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "memory": memory,
    "constructor": constructor,
    "loading": loading,
    **{f"layers {count}": functools.partial(many, count) for count in MANY},
}


def main() -> None:
    results: dict[str, Any] = {"bits": BITS}
    for name in PARTS:
        command = [sys.executable, __file__, name]
        environ = os.environ | (GIVES_BACK if name == "memory" else {})
        found = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
        results[name] = json.loads(found.stdout)
        print(name, results[name], flush=True)
    write_json(RESULT, results | {"environment": environment()})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(json.dumps(PARTS[sys.argv[1]]()))
    else:
        main()
