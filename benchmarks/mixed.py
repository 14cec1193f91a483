"""Bits of weights and inputs searched for together, beside the same bits everywhere.

    python benchmarks/mixed.py                      # half an hour

Both have at most the same number of bit operations. ResNet-20 on CIFAR-10; 512 unlabelled training
images choose the bits, calibrate the inputs and calibrate the weights; nothing is trained. Rows are
written as they come, and skipped if they are there. Writes benchmarks/results/mixed.json.
"""

import json
import time
from pathlib import Path
from typing import Any

from octavo import Budget, Plan, calibrate, quantize_activations, search
from octavo.dnq.survey import survey
from octavo.formats.width import write_widths
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "mixed.json"
OPTIONS = (2, 3, 4, 5)
INPUTS = (3, 4, 6, 8)
UNIFORM = ((4, 4), (3, 4), (3, 3))  # bits of weights and inputs whose bit operations are the budget
TRIALS = 768
IMAGES = 512
BATCH = 32
SEED = 0


def scored(task: Cifar10, plan: Plan) -> dict[str, Any]:
    """Test accuracy of the calibrated network under a plan, and its sizes."""
    model = task.model()
    inputs = list(task.calibration())
    quantize_activations(model, inputs, plan.activations)
    packed = calibrate(model, plan, inputs)
    packed.apply(model)
    cost = plan.cost()
    sizes = {
        "average_bits": cost.average_bits,
        "bit_ops": cost.bit_ops,
        "file_bytes": packed.file_bytes,
    }
    return {"accuracy": task.score(model)} | sizes


def uniform(task: Cifar10, weights: int, inputs: int) -> Plan:
    model = task.model()
    space = survey(model, next(iter(task.calibration())), (weights,), {}, (inputs,))
    return space.plan(space.cheapest)


def searched(task: Cifar10, bit_ops: int | None) -> tuple[Plan, dict[str, Any]]:
    started = time.monotonic()
    result = search(
        task.model(),
        task.calibration(),
        budget=Budget(bit_ops=bit_ops),
        options=OPTIONS,
        activations=INPUTS,
        trials=TRIALS,
        seed=SEED,
    )
    about = {
        "score": result.objective,
        "uniform_score": result.uniform_objective,
        "seconds": round(time.monotonic() - started, 1),
    }
    return result.plan, about | {
        "weights": write_widths(result.plan),
        "inputs": dict(result.plan.activations),
    }


def main() -> None:
    task = Cifar10(
        20, "~/.cache/octavo/resnet20-cifar10.safetensors", calibration_size=IMAGES, batch=BATCH
    )
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {"environment": environment(), "images": IMAGES, "trials": TRIALS, "seed": SEED}
    for weights, inputs in UNIFORM:
        everywhere = uniform(task, weights, inputs)
        for name in ("uniform", "searched"):
            if (key := f"{weights}x{inputs}, {name}") not in result["rows"]:
                plan, about = (
                    (everywhere, {})
                    if name == "uniform"
                    else searched(task, everywhere.cost().bit_ops)
                )
                result["rows"][key] = scored(task, plan) | about
                print(
                    key,
                    {
                        k: v
                        for k, v in result["rows"][key].items()
                        if k not in ("weights", "inputs")
                    },
                    flush=True,
                )
                write_json(RESULT, result)


if __name__ == "__main__":
    main()
