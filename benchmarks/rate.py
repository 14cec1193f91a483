"""The smallest file at every accuracy: octavo's codebooks at several rates, beside integers.

    python benchmarks/rate.py                       # some hours
    python benchmarks/rate.py --depth 56 --sets 1   # ResNet-56, one set of calibration images

ResNet-20 on CIFAR-10, post-training, from 1,024 unlabelled training images. octavo's rows are
``calibrate(..., absorb=True, rate=...)``. The rivals are symmetric integers with a step of its own
for each output channel, ``step`` times the root mean square of its weights. The same recursion
solves them, layer after layer, from the same images (octavo sets 64 of them aside, the rival solves
from all). Bits may have a price in them too, ``price`` times the error of rounding a weight,
``step^2 / 12``; and with ``weighted``, steps and prices of layers differ as octavo's rates do. Each
channel gets the factor of least error in the end, as octavo's do.

Both have codes in the coder ``small`` and norms folded to float16. The rival's steps take no bytes:
batch norms could take them.

Rates, steps and prices are a sweep that was fixed beforehand. Every row is published and scored on
the test images once, so that nothing is chosen on them; rows have the divergence on 1,000 training
images that calibrate nothing as well. Rows are written as they come, and skipped if they are there;
networks stay in ~/.cache/octavo/rate. Writes benchmarks/results/rate.json, for another depth
rate-resnet56.json.
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo import Packed, Plan, calibrate
from octavo.formats.registry import codebook_at
from octavo.formats.width import Width, read_width
from octavo.network.copies import copied
from octavo.network.layers import Layer, channels_back, channels_first, find_layers
from octavo.network.moments import Moments
from octavo.ptq.compensation import compensate
from octavo.ptq.gptq import curvature
from octavo.ptq.layer_problem import LayerProblem
from octavo.ptq.layer_rates import rates_of_layers
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.settings import PtqSettings
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10
from octavo.storage.packed import pack
from octavo.storage.quantized import Quantized

RESULTS = Path(__file__).parent / "results"
KEPT = Path("~/.cache/octavo/rate").expanduser()
IMAGES = 1024
SETS = 3
HELD_OUT = 1000
INTEGERS = 63  # the largest level of the rival, in steps
ESTIMATES = 2  # times that the rival's bits are estimated
CANDIDATES = (
    "octavo/apot5/40",
    "octavo/apot5/28",
    "octavo/apot5/20",
    "integers/1/0/weighted",
    "integers/0.75/0/weighted",
    "octavo/4/1.5",
    "octavo/apot5/13",
    "integers/1/0.35/weighted",
    "integers/0.75/0.35/weighted",
    "integers/0.55/0.35/weighted",
    "octavo/apot5/8",
    "octavo/3/0.5",
    "integers/1/0/equal",
    "octavo/fp4/2",
    "octavo/apot5/3",
    "octavo/apot6/4",
    "integers/0.35/0.35/weighted",
    "octavo/4/0",
    "octavo/3/0",
    "octavo/2/0",
    "octavo/5/1",
    "octavo/fp4/0",
    "octavo/apot5/0",
)
INT8 = Width(8, "int")


def task(depth: int = 20) -> Cifar10:
    return Cifar10(
        depth=depth,
        weights=f"~/.cache/octavo/resnet{depth}-cifar10.safetensors",
        calibration_size=IMAGES * SETS + HELD_OUT,
    )


def width_of(text: str) -> Width:
    return read_width(int(text) if text.isdigit() else text)


def layer_rates(model: nn.Module, width: Width, rate: float, images: Tensor) -> dict[str, float]:
    planned = [(layer, width) for layer in find_layers(model)[0]]
    return rates_of_layers(model, planned, [images[:64]], PtqSettings(rate=rate))


def integers(layer: Layer, moments: Moments, step: float, price: float) -> tuple[Tensor, Tensor]:
    """Solve a layer on the rival's levels; return its codes, those of int8, and its weight."""
    rows = channels_first(layer.weight.detach().float(), layer.groups)
    problem = LayerProblem.of(rows, moments, INT8, PtqSettings.damp, rows != rows)
    scale = step * rows.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
    scale = scale.double().view(len(problem.start), -1, 1)  # (problems, rows, 1)
    levels = torch.arange(-INTEGERS, INTEGERS + 1.0)
    weight = (problem.start / scale).float()
    of_bit = price / 12 * curvature(problem.damped).mean(1).view(-1, 1, 1).expand(scale.shape)
    rounding = Rounding(levels)
    codes = rounding(weight).to(torch.uint8)
    for _ in range(ESTIMATES):
        if price:
            prices = Prices(bits_of_codes(codes, len(levels)), of_bit)
            rounding = Rounding(levels, prices=prices)
        codes = compensate(weight, problem.damped, rounding, "gptq").codes
    level = levels.double()[codes.long()] * scale
    bent = level @ problem.hessian.double()  # q H; the factor of least error is t H q / q H q
    gain = (bent * problem.target).sum(2, keepdim=True) / (bent * level).sum(2, keepdim=True)
    level = (level * gain.nan_to_num(1).clamp(0.5, 2)).float().view(rows.shape)
    of_int8 = codes + (INT8.level_count // 2 - INTEGERS)
    return of_int8.view(rows.shape), channels_back(level, layer.groups)


def rival(
    model: nn.Module, images: Sequence[Tensor], step: float, price: float, weighted: bool
) -> tuple[nn.Module, Packed]:
    """Return the rival's network, and its codes as if they were those of int8."""
    rates = layer_rates(model, Width(5, "apot"), 1.0, images[0])
    network = copied(model)
    quantized = {}

    def freeze(layer: Layer, moments: Moments, _: object) -> None:
        factor = math.sqrt(rates[layer.name]) if weighted else 1.0
        codes, weight = integers(layer, moments, step * factor, price)
        codebook = codebook_at(INT8, torch.tensor(0))
        quantized[layer.name] = Quantized.of(layer, codebook, codes)
        layer.weight.copy_(weight)

    with torch.no_grad():
        freeze_sequentially(copied(model), network, find_layers(network)[0], images, freeze)
        packed = pack(network, quantized).with_floats("folded", model)
        state = network.state_dict()
        for name, value in ((name, value) for names, value in packed.floats for name in names):
            state[name].copy_(value)
    return network, packed


def solved(name: str, cifar: Cifar10, images: Sequence[Tensor]) -> tuple[nn.Module, Packed]:
    """Solve a candidate layer after layer."""
    kind, *settings = name.split("/")
    network = cifar.model()
    if kind == "integers":
        step, price, weighted = settings
        return rival(network, images, float(step), float(price), weighted == "weighted")
    width, rate = settings
    plan = Plan.uniform(network, width_of(width))
    packed = calibrate(network, plan, images, absorb=True, rate=float(rate))
    packed = packed.with_floats("folded", network)
    packed.apply(network)
    return network, packed


@torch.no_grad()
def divergence(model: nn.Module, network: nn.Module, images: Tensor) -> float:
    """Return the mean KL divergence of a network from the model in full precision, in nats."""
    full = model(images).log_softmax(1)
    now = network(images).log_softmax(1)
    return float(F.kl_div(now, full, log_target=True, reduction="batchmean"))


def row(name: str, cifar: Cifar10, images: Sequence[Tensor], index: int) -> dict[str, Any]:
    """Return the bytes of a candidate, its divergence on training images that calibrate nothing,
    and its accuracy on the test images.
    """
    kept_as = f"{name.replace('/', '_')}_{index}.pt"
    path = (KEPT if cifar.depth == 20 else KEPT / f"resnet{cifar.depth}") / kept_as
    if not path.exists():
        network, packed = solved(name, cifar, images[index].split(128))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": network.state_dict(), "packed": packed}, path)
    kept = torch.load(path, weights_only=False)
    network = cifar.model()
    network.load_state_dict(kept["state"])
    packed = kept["packed"]
    return {
        "file_bytes": replace(packed, coding="small").file_bytes,
        "fast_bytes": replace(packed, coding="fast").file_bytes,
        "divergence": round(divergence(cifar.model(), network, images[-1]), 5),
        "accuracy": cifar.score(network),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--depth", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / (
        "rate.json" if arguments.depth == 20 else f"rate-resnet{arguments.depth}.json"
    )
    result = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    result |= {"environment": environment(), "images": IMAGES}
    cifar = task(arguments.depth)
    images = torch.cat(list(cifar.calibration())).split(IMAGES)  # the last part calibrates nothing
    rows = result["rows"]

    for name, index in itertools.product(CANDIDATES, range(arguments.sets)):
        if str(index) in rows.setdefault(name, {}):
            continue
        rows[name][str(index)] = row(name, cifar, images, index)
        print(name, index, rows[name][str(index)], flush=True)
        write_json(path, result)


if __name__ == "__main__":
    main()
