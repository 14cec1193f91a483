"""How many calibration images a search for bits should see.

    python benchmarks/images.py                     # half an hour

ResNet-20 on CIFAR-10, 512 plans each, one seed. Calibration and objective see the same unlabelled
training images; the divergence of the plan is measured again on 4,096 others. Nothing is retrained.
Rows are written as they come, and skipped if they are there. Writes benchmarks/results/images.json.
"""

import json
from pathlib import Path
from typing import Any

import torch
from search import TRIALS, Setting, task_of  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn

from octavo import calibrate
from octavo.network.outputs import parts_of
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "images.json"
SEEN = (512, 1024, 2048)
OTHERS = 4096
SEED = 0
WAYS = {"dnq, 2.5": ("dnq", 2.5), "dnq, 3": ("dnq", 3.0), "3 bits": ("uniform", 3.0)}


def others() -> Tensor:
    """Return training images that no search has seen."""
    return torch.cat(list(task_of(20, 2 * OTHERS).calibration()))[OTHERS:]


@torch.no_grad()
def divergence(full: nn.Module, quantized: nn.Module, images: Tensor) -> float:
    """Return the mean KL divergence of the outputs from full precision, as trials measure it."""
    total = 0.0
    for batch in images.split(256):
        (own,), (target,) = (parts_of(network(batch)) for network in (quantized, full))
        total += float(own.lost(target))
    return total / len(images)


def row(setting: Setting, method: str, average: float, unseen: Tensor) -> dict[str, Any]:
    figures: dict[str, Any] = setting.search(average, method, SEED)
    choice = setting.choice(figures["choice"])
    figures["others"] = -divergence(setting.model, setting.environment.network(choice), unseen)
    calibrated = setting.task.model()
    packed = calibrate(setting.model, setting.space.plan(choice), setting.task.calibration())
    packed.apply(calibrated)
    return figures | {"calibrated": setting.task.score(calibrated)}


def main() -> None:
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {"environment": environment(), "trials": TRIALS, "seed": SEED, "others": OTHERS}
    unseen = others()
    for images in SEEN:
        missing = [way for way in WAYS if f"{images}, {way}" not in result["rows"]]
        if not missing:
            continue
        setting = Setting(20, images)
        for way in missing:
            result["rows"][f"{images}, {way}"] = row(setting, *WAYS[way], unseen)
            print(images, way, result["rows"][f"{images}, {way}"], flush=True)
            write_json(RESULT, result)


if __name__ == "__main__":
    main()
