"""Accuracy of the closed form on CIFAR-10 test images, without labels and without training.

    python benchmarks/oneshot.py                       # ResNet-20 and ResNet-56, every bit-width;
    orders and settings: an hour python benchmarks/oneshot.py --only resnet20/3     # rows whose
    names begin so; resnet20/apot: sums of two powers of two

Each row is the mean of 3 seeds: 3 sets of 1,024 unlabelled training images without an image in
common. Rows are written as they come and skipped where they are there. Writes
benchmarks/results/oneshot.json.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import octavo.ptq.compensation
import octavo.ptq.gptq
from octavo import Apot, Incremental, Packed, Plan, calibrate
from octavo.formats.width import write_width
from octavo.ptq.assignment import Assignment
from octavo.runs.folder import write_json
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "oneshot.json"
IMAGES, SEEDS = 1024, 3
SLOW = ("magnitude", "distance")  # each row of weights has an order of its own: one seed
WAYS: dict[str, dict[str, Any]] = {
    "gptq, float inputs": {"sequential": False},
    "gptq, per layer": {"per": "layer"},
    "random": {"order": "random"},
    "magnitude": {"order": "magnitude"},
    "distance": {"order": "distance"},
}


def rows() -> dict[str, tuple[int, int, dict[str, Any] | None]]:
    """Name to depth, bits and arguments of calibrate; None for plain rounding."""
    found: dict[str, tuple[int, int, dict[str, Any] | None]] = {}
    for bits in (5, 4, 3, 2):
        found[f"resnet20/{bits}/nearest"] = (20, bits, None)
        found[f"resnet20/{bits}/gptq"] = (20, bits, {})
        found[f"resnet20/{bits}/gptq, absorbed"] = (20, bits, {"absorb": True})
    for width in (Apot(6), Apot(5), Apot(7), Apot(8)):
        found[f"resnet20/{width}/gptq"] = (20, width, {})
        found[f"resnet20/{width}/nearest"] = (20, width, None)
    for bits in (5, 4, 3, 2):
        found[f"resnet56/{bits}/nearest"] = (56, bits, None)
        found[f"resnet56/{bits}/gptq"] = (56, bits, {})
        found[f"resnet56/{bits}/gptq, absorbed"] = (56, bits, {"absorb": True})
    found |= {
        f"resnet20/{bits}/{name}": (20, bits, arguments)
        for bits in (3, 2)
        for name, arguments in WAYS.items()
    }
    return found


def task(depth: int) -> Cifar10:
    return Cifar10(
        depth=depth,
        weights=f"~/.cache/octavo/resnet{depth}-cifar10.safetensors",
        calibration_size=IMAGES * SEEDS,
    )


def score(
    cifar: Cifar10,
    model: nn.Module,
    bits: int,
    arguments: dict[str, Any] | None,
    images: list[Tensor],
) -> float:
    plan = Plan.uniform(model, bits)
    if arguments is None:
        packed = nearest(model, plan)
    elif arguments == WAYS["random"]:
        packed = in_random_order(model, plan, images)
    else:
        packed = calibrate(model, plan, images, **arguments)
    quantized = cifar.model()
    packed.apply(quantized)
    return cifar.score(quantized)


def in_random_order(model: nn.Module, plan: Plan, images: list[Tensor]) -> Packed:
    """GPTQ with the columns of each layer in a random order, at the scales of GPTQ's own order."""

    def columns(hessian: Tensor) -> Tensor:
        order = torch.randperm(hessian.shape[1], generator=torch.Generator().manual_seed(0))
        return order.to(hessian.device).expand(len(hessian), -1)

    def instead_of_obq(weight: Tensor, hessian: Tensor, levels: Tensor, **_: object) -> Assignment:
        with mock.patch.object(octavo.ptq.gptq, "column_order", columns):
            return octavo.ptq.gptq.gptq(weight, hessian, levels)

    with mock.patch.object(octavo.ptq.compensation, "obq", instead_of_obq):
        return calibrate(model, plan, images, order="distance")


def nearest(model: nn.Module, plan: Plan) -> Packed:
    """INQ with a single portion and no retraining is rounding to the nearest level."""
    incremental = Incremental(copy.deepcopy(model), plan, portions=(1.0,))
    next(iter(incremental))
    return incremental.finish()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {"environment": environment(), "images": IMAGES, "seeds": list(range(SEEDS))}
    for name, (depth, bits, arguments) in rows().items():
        if name in result["rows"] or not name.startswith(only):
            continue
        cifar = task(depth)
        model = cifar.model()
        before = result.setdefault("float", {}).setdefault(f"resnet{depth}", None) or cifar.score(
            model
        )
        result["float"][f"resnet{depth}"] = before
        images = torch.cat(list(cifar.calibration())).split(IMAGES)
        seeds = range(1 if arguments is None or arguments.get("order") in SLOW else SEEDS)
        scores = [
            score(cifar, model, bits, arguments, list(images[seed].split(128))) for seed in seeds
        ]
        result["rows"][name] = {
            "bits": write_width(bits),
            "mean": round(statistics.mean(scores), 2),
            "scores": scores,
        }
        print(name, result["rows"][name])
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
