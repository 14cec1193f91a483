"""Other packages beside octavo: the file that each one saves, and what the network is worth after.

    make peers     # half an hour, in an environment of its own

ResNet-20 and ResNet-56 on CIFAR-10, weights only, without training, from the same 1,024 unlabelled
training images. Every contender is a process of its own on one thread; contenders.py has its code.
*File* is all that it saves, norms included. Accuracy is that of the network loaded from the file
into a fresh one. *Exact* says whether its outputs on 1,000 training images are, bit for bit, those
of the quantized network before it was saved. Seconds are processor time of quantizing and saving;
memory is what the process needed at most above what it had before; lines are those of the
contender's functions. Settings were fixed beforehand, and all rows are published: nothing is chosen
on the test images. Where a package fails, the row has its error.

Rows are written as they come, and skipped if they are there. Writes benchmarks/results/peers.json.
"""

import argparse
import ast
import inspect
import json
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import CONTENDERS  # type: ignore[import-not-found]  # its neighbour

from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parents[1] / "results" / "peers.json"
DEPTHS = (20, 56)
IMAGES = 1024
COMPARED = 1000
SECONDS = 1800


def lines(function: Callable[..., object]) -> int:
    """Count the lines of code of a function, but for its head."""
    plain = function.func if isinstance(function, partial) else function
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(plain))).body
    assert isinstance(tree, ast.FunctionDef)
    return len(
        {node.lineno for one in tree.body for node in ast.walk(one) if hasattr(node, "lineno")}
    )


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(name: str, depth: int) -> dict[str, Any]:
    """Run a contender in this process."""
    contender = CONTENDERS[name]
    weights = f"~/.cache/octavo/resnet{depth}-cifar10.safetensors"
    cifar = Cifar10(depth=depth, weights=weights, calibration_size=IMAGES + COMPARED)
    images, others = torch.cat(list(cifar.calibration())).split(IMAGES)
    with TemporaryDirectory() as name_of_folder, torch.no_grad():
        folder = Path(name_of_folder)
        # Some packages save no tensors in channels-last memory.
        model, fresh = (
            cifar.model().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for _ in range(2)
        )
        model(images[:128])
        before = peak()
        start = time.process_time()
        network = contender.save(model, images.split(128), folder)
        seconds = time.process_time() - start
        memory = peak() - before
        loaded = contender.load(fresh, folder)
        exact = None if network is None else bool(torch.equal(network(others), loaded(others)))
        return {
            "file_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "accuracy": cifar.score(loaded),
            "exact": exact,
            "seconds": round(seconds, 1),
            "memory_mb": round(memory / 1e6),
            "lines": lines(contender.save) + lines(contender.load),
            "version": version(contender.package),
        }


def in_a_process(name: str, depth: int) -> dict[str, Any]:
    """Run a contender in a process of its own; return its row, or the reason why there is none."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, str(depth)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"why": f"it took more than {SECONDS} seconds"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"why": ([line for line in said if "Error" in line] or said)[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--depth", type=int, nargs="*", default=DEPTHS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        name, depth = arguments.one
        print(json.dumps(measured(name, int(depth))))
        return
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {"environment": environment(), "images": IMAGES}
    for depth in arguments.depth:
        rows = result["rows"].setdefault(f"resnet{depth}", {})
        for name in CONTENDERS:
            if name not in rows:
                rows[name] = in_a_process(name, depth)
                print(depth, name, rows[name], flush=True)
                write_json(RESULT, result)


if __name__ == "__main__":
    main()
