"""Time of calibration, and of its solver beside the bare linear algebra of GPTQ.

    python benchmarks/ptq_cost.py

ResNet-20 and ResNet-56, 3 bits, 1,024 CIFAR-10 images. The linear algebra alone is, for each layer,
one Cholesky factorization, the inverse of that factor, and the updates of its rows column by column
and block by block, without rounding, choice of exponents or checks. Both are timed in turn on the
same layers; the median of several runs is reported. Writes benchmarks/results/oneshot_cost.json,
which keeps its name from version 0.1.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo import Plan, calibrate
from octavo.network.forward import observing
from octavo.network.layers import Layer, channels_first, find_layers
from octavo.network.moments import Moments
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.gptq import BLOCK
from octavo.ptq.layer_solver import solve
from octavo.ptq.least_squares import damped
from octavo.ptq.settings import PtqSettings
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "oneshot_cost.json"
REPEATS = 5
BITS = 3


def linear_algebra(weight: Tensor, hessian: Tensor) -> None:
    """Run the bare linear algebra of GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1); a factor
    takes the place of its quantizer.
    """
    factor = torch.linalg.cholesky(damped(hessian, 0.01).flip(1, 2))
    unit = torch.eye(factor.shape[1], dtype=factor.dtype).expand_as(factor)
    upper = torch.linalg.solve_triangular(factor, unit, upper=False).flip(1, 2).float()
    free = weight.permute(2, 0, 1).contiguous()
    width = weight.shape[2]
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        pull = (
            (upper / upper.diagonal(dim1=1, dim2=2).unsqueeze(2))[:, start:end, start:]
            .permute(1, 2, 0)
            .contiguous()
        )
        errors = free[start:end]
        for i in range(end - start):
            errors[i] *= 0.1
            errors[i + 1 :].addcmul_(pull[i, i + 1 : end - start].unsqueeze(2), errors[i], value=-1)
        free[end:] -= torch.einsum("icp,ipr->cpr", pull[:, end - start :], errors)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def solver_ratio(layers: list[Layer], moments: dict[str, Moments]) -> dict[str, float]:
    def solver() -> None:
        for layer in layers:
            solve(layer, moments[layer.name], BITS, PtqSettings())

    def bare() -> None:
        for layer in layers:
            hessian = moments[layer.name].hessian
            rows = channels_first(layer.weight.detach(), layer.groups)
            linear_algebra(rows.reshape(len(hessian), -1, hessian.shape[1]), hessian)

    pairs = [(seconds(solver), seconds(bare)) for _ in range(REPEATS)]
    return {
        "solver_s": round(statistics.median(a for a, _ in pairs), 3),
        "linear_algebra_s": round(statistics.median(b for _, b in pairs), 3),
        "solver_ratio": round(statistics.median(a / b for a, b in pairs), 2),
    }


def forward(model: nn.Module, images: list[Tensor]) -> None:
    for batch in images:
        model(batch)


def main() -> None:
    rows = {}
    for depth in (20, 56):
        task = Cifar10(depth=depth, weights=f"~/.cache/octavo/resnet{depth}-cifar10.safetensors")
        model = task.model()
        images = list(task.calibration())
        layers = find_layers(model)[0]
        plan = Plan.uniform(model, BITS)
        with observing(model):
            passes = [seconds(partial(forward, model, images)) for _ in range(3)]
        whole = seconds(partial(calibrate, model, plan, images))
        row = {"calibrate_s": round(whole, 1), "forward_s": round(statistics.median(passes), 2)}
        with torch.no_grad():
            rows[f"resnet{depth}"] = row | solver_ratio(
                layers, float_moments(model, images, layers)
            )
        print(depth, rows[f"resnet{depth}"])
    RESULT.write_text(
        json.dumps(
            {"bits": BITS, "images": 1024, "environment": environment(), "rows": rows}, indent=2
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
