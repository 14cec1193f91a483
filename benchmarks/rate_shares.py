"""How a rate is shared among layers: one power of their sensitivity beside others, at equal bytes.

    python benchmarks/rate_shares.py    # half an hour of one core; needs CIFAR-10

``octavo.ptq.sensitivity`` gives a layer the rate ``lambda * share ** -0.5``, where its share is the
divergence that it causes alone, for each of its weights, beside that of the network. Here the
power is -0.25, -0.75 and -1 as well, and 0, the same rate in all layers. ResNet-20, ``apot5`` in
every layer, calibrated with ``absorb=True`` from 1,024 unlabelled training images. The rate is the
one at which the file just fits BYTES, norms folded and in the coder ``small``. Each row has the
divergence on 2,048 training images that calibrate nothing; the test images are not looked at. Rows
are written as they come, and skipped if they are there. Writes benchmarks/results/rate-shares.json.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo import Budget, Packed, Plan
from octavo.progress import silent
from octavo.ptq.file_budget import within
from octavo.ptq.file_form import FileForm
from octavo.ptq.network_solver import rate_factors, solve_network
from octavo.ptq.sensitivity import MOST
from octavo.ptq.settings import PtqSettings
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "rate-shares.json"
WEIGHTS = "~/.cache/octavo/resnet20-cifar10.safetensors"
IMAGES = 1024
UNSEEN = 2048
BYTES = 56_000
POWERS = (0.5, 0.75, 1.0, 0.25, 0.0)
OWN = 0.5  # the power that octavo has
FORM = FileForm(floats="folded", coding="small")


@dataclass(frozen=True, eq=False)
class Solved:
    """A network at a rate, in the form of its file."""

    packed: Packed
    rate: float

    @property
    def file_bytes(self) -> int:
        """The bytes of its file."""
        return self.packed.file_bytes

    @property
    def float_bytes(self) -> int:
        """The bytes of its tensors in float."""
        return self.packed.float_bytes


def divergence(model: nn.Module, packed: Packed, images: Tensor) -> float:
    """Return the mean KL divergence from full precision on images."""
    with torch.no_grad():
        full = model(images).log_softmax(1)
        network = Cifar10(depth=20).model()
        packed.apply(network)
        now = network(images).log_softmax(1)
    return float(F.kl_div(now, full, log_target=True, reduction="batchmean"))


def row(model: nn.Module, images: Tensor, power: float) -> dict[str, Any]:
    started = time.monotonic()
    inputs = list(images[:IMAGES].split(64))
    plan = Plan.uniform(model, "apot5")
    settings = PtqSettings(absorb=True, rate=1.0)
    own = rate_factors(model, plan, inputs, settings)
    factors = {
        name: min(MOST, max(1 / MOST, factor ** (power / OWN))) for name, factor in own.items()
    }

    def solve(rate: float) -> Solved:
        at_rate = replace(settings, rate=rate)
        packed = solve_network(model, plan, inputs, at_rate, silent, factors).checked()
        return Solved(FORM.of(packed, model, inputs), rate)

    found = within(Budget(bytes=BYTES), solve)
    return {
        "rate": round(found.rate, 2),
        "file_bytes": found.file_bytes,
        "divergence": round(divergence(model, found.packed, images[IMAGES:]), 5),
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    torch.set_num_threads(1)
    task = Cifar10(depth=20, weights=WEIGHTS, calibration_size=IMAGES + UNSEEN)
    images = torch.cat(list(task.calibration()))
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    for power in POWERS:
        if str(power) not in result["rows"]:
            result["rows"][str(power)] = row(task.model(), images, power)
            print(power, result["rows"][str(power)], flush=True)
            about = {"images": IMAGES, "unseen": UNSEEN, "bytes": BYTES}
            write_json(RESULT, result | about | {"environment": environment()})


if __name__ == "__main__":
    main()
