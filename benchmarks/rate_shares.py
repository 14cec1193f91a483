"""How a rate is shared among layers: one power of their sensitivity beside others, at equal bytes.

    python benchmarks/rate_shares.py    # half an hour of one core; needs CIFAR-10

``octavo.ptq.layer_rates`` gives a layer the rate ``lambda * share ** -0.5``, where its share is the
divergence that it causes alone, for each of its weights, beside that of the network. Here are other
powers, and 0, the same rate in all layers. ResNet-20, ``apot5`` in every layer, calibrated with
``absorb=True`` from 1,024 unlabelled training images. The rate is the one at which the file just
fits a number of bytes, norms folded and in the coder ``small``. Each row has the divergence on
2,048 training images that calibrate nothing; the test images are not looked at. Rows are written as
they come, and skipped if they are there. Writes benchmarks/results/rate-shares.json.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rate import IMAGES, divergence, task  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn

from octavo import Budget, Plan
from octavo.network.copies import copied
from octavo.progress import silent
from octavo.ptq.calibration import Calibrated
from octavo.ptq.file_budget import within
from octavo.ptq.file_form import FileForm
from octavo.ptq.layer_rates import MOST
from octavo.ptq.network_solver import rate_factors, solve_network
from octavo.ptq.settings import PtqSettings
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "rate-shares.json"
UNSEEN = 2048
POWERS = (0.5, 0.25, 0.0, 0.75, 1.0)
CASES = {56_000: POWERS, 80_000: POWERS[:3]}  # the bytes of the file, the powers that are tried
OWN = 0.5  # the power that octavo has
FORM = FileForm(floats="folded", coding="small")


def row(model: nn.Module, seen: Tensor, unseen: Tensor, limit: int, power: float) -> dict[str, Any]:
    started = time.monotonic()
    inputs = list(seen.split(64))
    plan = Plan.uniform(model, "apot5")
    settings = PtqSettings(absorb=True, rate=1.0)
    own = rate_factors(model, plan, inputs, settings)
    factors = {
        name: min(MOST, max(1 / MOST, factor ** (power / OWN))) for name, factor in own.items()
    }

    def solve(rate: float) -> Calibrated:
        at_rate = replace(settings, rate=rate)
        packed = solve_network(model, plan, inputs, at_rate, silent, factors).checked()
        return Calibrated(packed, FORM.of(packed, model, inputs), rate, ())

    found = within(Budget(bytes=limit), solve)
    network = copied(model)
    found.as_filed.apply(network)
    return {
        "rate": round(found.rate, 2),
        "file_bytes": found.file_bytes,
        "divergence": round(divergence(model, network, unseen), 5),
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    cifar = task()
    images = torch.cat(list(cifar.calibration()))
    seen, unseen = images[:IMAGES], images[IMAGES : IMAGES + UNSEEN]
    for limit, powers in CASES.items():
        rows = result["rows"].setdefault(str(limit), {})
        for power in powers:
            if str(power) in rows:
                continue
            rows[str(power)] = row(cifar.model(), seen, unseen, limit, power)
            print(limit, power, rows[str(power)], flush=True)
            about = {"images": IMAGES, "unseen": UNSEEN, "environment": environment()}
            write_json(RESULT, result | about)


if __name__ == "__main__":
    main()
