"""The published retrained networks in fewer bytes: the coding ``small``, and folded norms.

    python benchmarks/small.py    # some minutes; needs CIFAR-10

The networks are those of benchmarks/results/*.safetensors. Both codings decode to the same codes.
Norms that are folded to float16 change outputs by their rounding, so that each network of CIFAR-10
is scored on the test images once more. Rows are written as they come, and skipped if they are
there. Writes benchmarks/results/small.json, and into benchmarks/results/small the file of README's
headline.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from octavo import Packed
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10
from octavo.storage.container import pack, to_file, unpack
from octavo.storage.layer_strings import Coding

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "small.json"
CODINGS: tuple[Coding, ...] = ("fast", "small")
OF_CIFAR10 = "resnet20-"
HEADLINE = "resnet20-dnq-70kb"


def measured(packed: Packed, coding: Coding) -> dict[str, int]:
    """Return the bytes of the file and of its codes."""
    blobs, version = pack(packed.layers, packed.floats, packed.activations, coding)
    data = to_file(blobs, version)
    again = unpack(data)[0]
    if any(not torch.equal(again[name].codes, one.codes) for name, one in packed.layers.items()):
        raise RuntimeError("decoding gave other codes")
    codes = sum(len(blob) for name, blob in blobs.items() if name.startswith("codes."))
    return {
        "file_bytes": replace(packed, coding=coding).file_bytes,
        "code_bytes": codes,
    }


def smallest(packed: Packed, task: Cifar10) -> Packed:
    """Return a network in ``small``, with folded norms."""
    return replace(packed.with_floats("folded", task.model()), coding="small")


def folded(packed: Packed, task: Cifar10) -> dict[str, float]:
    """Return the bytes and the score of a network in ``small`` whose norms are folded."""
    model = task.model()
    packed = smallest(packed, task)
    packed.apply(model)
    return {"file_bytes": packed.file_bytes, "score": task.score(model)}


def main() -> None:
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    rows = result["rows"]
    task = Cifar10(depth=20)
    headline = Packed.load(RESULTS / f"{HEADLINE}.safetensors")
    smallest(headline, task).save(RESULTS / "small" / f"{HEADLINE}.safetensors")
    for path in sorted(RESULTS.glob("*.safetensors")):
        if path.stem in rows:
            continue
        packed = Packed.load(path)
        row: dict[str, Any] = {coding: measured(packed, coding) for coding in CODINGS}
        saved = 1 - row["small"]["code_bytes"] / row["fast"]["code_bytes"]
        row["saved_pct_of_codes"] = round(100 * saved, 2)
        if path.stem.startswith(OF_CIFAR10):
            row["folded"] = folded(packed, task)
        rows[path.stem] = row
        print(path.stem, row, flush=True)
        write_json(RESULT, result | {"environment": environment()})


if __name__ == "__main__":
    main()
