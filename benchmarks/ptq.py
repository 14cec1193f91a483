"""Accuracy of calibration on CIFAR-10's test images, without labels and without training.

    python benchmarks/ptq.py                        # an hour: ResNet-20, 56 and 8, every width
    python benchmarks/ptq.py --only resnet20/3      # only rows whose names begin so
    python benchmarks/ptq.py --only resnet20/apot   # sums of two powers of two
    python benchmarks/ptq.py --only resnet56/fp4    # floating-point numbers of 4 bits

Each row is the mean of 3 seeds: 3 sets of 1,024 unlabelled training images that have no image in
common. Rows are written as they come, and skipped if they are there. Writes
benchmarks/results/oneshot.json, which keeps its name from version 0.1; its rows ``random`` and
``gptq, corrected`` are settings that octavo no longer has.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from resnet8 import resnet8  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn

import octavo.ptq.compensation
import octavo.ptq.gptq
from octavo import Apot, Incremental, Packed, Plan, calibrate
from octavo.formats.width import read_width, write_width
from octavo.ptq.assignment import Assignment
from octavo.ptq.rounding import Rounding
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import MEAN, STD, Cifar10

RESULT = Path(__file__).parent / "results" / "oneshot.json"
IMAGES = 1024
SEEDS = 3
SLOW = ("magnitude", "distance")  # each row of weights has an order of its own: one seed
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq, float inputs": {"sequential": False},
    "gptq, per layer": {"per": "tensor"},
    "random": {"order": "random"},
    "magnitude": {"order": "magnitude"},
    "distance": {"order": "distance"},
}
DEPTHS = {"resnet20": 20, "resnet56": 56, "resnet8": 8}
Row = tuple[int, Any, dict[str, Any] | None]


def rows() -> dict[str, Row]:
    """The name of each row with the depth, the width and the arguments of calibrate; None stands
    for plain rounding.
    """
    named: dict[str, Row] = {}
    fp4 = read_width("fp4")
    widths = {
        "resnet20": (5, 4, 3, 2, *map(Apot, (6, 5, 7, 8)), fp4),
        "resnet56": (5, 4, 3, 2, fp4),
        "resnet8": (4, 3, fp4),
    }
    for network, depth in DEPTHS.items():
        for width in widths[network]:
            named[f"{network}/{width}/nearest"] = (depth, width, None)
            named[f"{network}/{width}/gptq"] = (depth, width, {})
        for width in (each for each in widths[network] if each in (5, 4, 3, 2, fp4)):
            named[f"{network}/{width}/gptq, absorbed"] = (depth, width, {"absorb": True})
    for bits in (3, 2):
        for name, arguments in SETTINGS.items():
            named[f"resnet20/{bits}/{name}"] = (20, bits, arguments)
    return named


class Classifier:
    """A trained network of a depth, with images of CIFAR-10."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._task = Cifar10(
            depth=depth,
            weights=f"~/.cache/octavo/resnet{depth}-cifar10.safetensors",
            calibration_size=IMAGES * SEEDS,
        )
        self.score = self._task.score
        self.calibration = self._task.calibration

    def model(self) -> nn.Module:
        """Return the network; ResNet-8 is another one than the task's of that depth."""
        if self._depth == 8:
            network: nn.Module = resnet8(MEAN, STD)
            return network
        return self._task.model()


def score(
    cifar: Classifier,
    model: nn.Module,
    width: Any,
    arguments: dict[str, Any] | None,
    images: list[Tensor],
) -> float:
    plan = Plan.uniform(model, width)
    if arguments is None:
        packed = nearest(model, plan)
    elif arguments == SETTINGS["random"]:
        packed = in_random_order(model, plan, images)
    else:
        packed = calibrate(model, plan, images, **arguments)
    quantized = cifar.model()
    packed.apply(quantized)
    return cifar.score(quantized)


def in_random_order(model: nn.Module, plan: Plan, images: list[Tensor]) -> Packed:
    """Calibrate with GPTQ's columns in a random order, an order that exists only here, with the
    exponents of GPTQ's own order.
    """

    def columns(hessian: Tensor) -> Tensor:
        order = torch.randperm(hessian.shape[1], generator=torch.Generator().manual_seed(0))
        return order.to(hessian.device).expand(len(hessian), -1)

    def instead_of_obq(
        weight: Tensor, hessian: Tensor, rounding: Rounding, **_: object
    ) -> Assignment:
        with mock.patch.object(octavo.ptq.gptq, "column_order", columns):
            return octavo.ptq.gptq.gptq(weight, hessian, rounding)

    with mock.patch.object(octavo.ptq.compensation, "obq", instead_of_obq):
        return calibrate(model, plan, images, order="distance")


def nearest(model: nn.Module, plan: Plan) -> Packed:
    """Round every weight to its nearest level: INQ with a single portion and no retraining."""
    incremental = Incremental(copy.deepcopy(model), plan, portions=(1.0,))
    next(iter(incremental))
    return incremental.finish()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {"environment": environment(), "images": IMAGES, "seeds": list(range(SEEDS))}
    for name, (depth, width, arguments) in rows().items():
        if name in result["rows"] or not name.startswith(only):
            continue
        cifar = Classifier(depth)
        model = cifar.model()
        before = result.setdefault("float", {}).setdefault(f"resnet{depth}", None) or cifar.score(
            model
        )
        result["float"][f"resnet{depth}"] = before
        images = torch.cat(list(cifar.calibration())).split(IMAGES)
        seeds = range(1 if arguments is None or arguments.get("order") in SLOW else SEEDS)
        scores = [
            score(cifar, model, width, arguments, list(images[seed].split(128))) for seed in seeds
        ]
        result["rows"][name] = {
            "bits": write_width(width),
            "mean": round(statistics.mean(scores), 2),
            "scores": scores,
        }
        print(name, result["rows"][name])
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
