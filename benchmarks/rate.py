"""The smallest file at every accuracy: octavo's codebooks at several rates, beside integers.

    python benchmarks/rate.py            # solves, chooses and scores: an hour
    python benchmarks/rate.py --sets 1   # one set of calibration images instead of three

ResNet-20 on CIFAR-10, post-training, from 1,024 unlabelled training images. octavo's rows are
``calibrate(..., absorb=True, rate=...)``. The rivals are symmetric integers with a step of its own
for each output channel, ``step`` times the root mean square of its weights. The same recursion
solves them, layer after layer, from the same images (octavo sets 64 of them aside, the rival solves
from all). Bits may have a price in them too, ``price`` times the error of rounding a weight,
``step^2 / 12``; and with ``weighted``, steps and prices of layers differ as octavo's rates do. Each
channel gets the factor of least error in the end, as octavo's do.

Both have codes in the coder ``small`` and norms folded to float16. The rival's steps take no bytes:
batch norms could take them.

Every candidate is solved from the first set of images. Those on the lower hull of bytes and of the
divergence on 1,000 training images that calibrate nothing are solved from the other sets as well,
and scored on the test images, each network once. Rows are written as they come, and skipped if they
are there; networks stay in ~/.cache/octavo/rate. Writes benchmarks/results/rate.json and
docs/rate.svg.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
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
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes
from octavo.ptq.sensitivity import rates_of_layers
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.settings import PtqSettings
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10
from octavo.storage.packed import pack
from octavo.storage.quantized import Quantized

RESULT = Path(__file__).parent / "results" / "rate.json"
KEPT = Path("~/.cache/octavo/rate").expanduser()
IMAGES = 1024
SETS = 3
HELD_OUT = 1000
INTEGERS = 63  # the largest level of the rival, in steps
ESTIMATES = 2  # times that the rival's bits are estimated
CANDIDATES = (
    "octavo/apot5/13",
    "integers/0.75/0.35/weighted",
    "octavo/apot5/28",
    "integers/1/0.35/weighted",
    "octavo/apot5/20",
    "integers/0.55/0.35/weighted",
    "octavo/apot5/8",
    "integers/0.75/0/weighted",
    "octavo/apot5/40",
    "integers/1/0/weighted",
    "octavo/4/1.5",
    "integers/1/0/equal",
    "octavo/3/0.5",
    "octavo/4/0",
    "octavo/3/0",
    "octavo/2/0",
)
INT8 = Width(8, "int")


def task() -> Cifar10:
    return Cifar10(
        depth=20,
        weights="~/.cache/octavo/resnet20-cifar10.safetensors",
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
        for names, value in packed.floats:
            state[names[0]].copy_(value)
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


def row(name: str, cifar: Cifar10, images: Sequence[Tensor], index: int) -> dict[str, Any]:
    """Return the bytes of a candidate and its divergence on training images."""
    path = KEPT / f"{name.replace('/', '_')}_{index}.pt"
    if not path.exists():
        network, packed = solved(name, cifar, images[index].split(128))
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save({"state": network.state_dict(), "packed": packed}, path)
    kept = torch.load(path, weights_only=False)
    network = cifar.model()
    network.load_state_dict(kept["state"])
    with torch.no_grad():
        full = cifar.model()(images[-1]).log_softmax(1)
        now = network(images[-1]).log_softmax(1)
    divergence = F.kl_div(now, full, log_target=True, reduction="batchmean")
    packed = kept["packed"]
    return {
        "file_bytes": packed.with_coding("small").file_bytes,
        "fast_bytes": packed.with_coding("fast").file_bytes,
        "divergence": round(float(divergence), 5),
        "network": network,
    }


def hull(rows: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    """Return the candidates of a kind on the lower hull of bytes and the log of divergence."""
    points = sorted(
        (sets["0"]["file_bytes"], math.log(sets["0"]["divergence"]), name)
        for name, sets in rows.items()
        if name.startswith(f"{kind}/")
    )
    kept: list[tuple[float, float, str]] = []
    for point in points:
        while len(kept) > 1 and _is_above(kept[-1], kept[-2], point):
            kept.pop()
        kept.append(point)
    best = min(kept, key=lambda point: point[1])
    return [name for size, _, name in kept if size <= best[0]]


def _is_above(middle: tuple[Any, ...], left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    slope = (right[1] - left[1]) / (right[0] - left[0])
    return bool(middle[1] >= left[1] + slope * (middle[0] - left[0]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=SETS)
    sets = parser.parse_args().sets
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    result |= {"environment": environment(), "images": IMAGES}
    cifar = task()
    images = torch.cat(list(cifar.calibration())).split(IMAGES)  # the last part calibrates nothing
    rows = result["rows"]

    def add(name: str, index: int, *, scored: bool) -> None:
        found = row(name, cifar, images, index)
        network = found.pop("network")
        old = rows.setdefault(name, {}).get(str(index), {})
        if scored:
            found["accuracy"] = old.get("accuracy") or cifar.score(network)
        rows[name][str(index)] = old | found
        print(name, index, rows[name][str(index)], flush=True)
        write_json(RESULT, result)

    for name in CANDIDATES:
        add(name, 0, scored=False)
    result["published"] = [one for kind in ("octavo", "integers") for one in hull(rows, kind)]
    for index in range(sets):
        for name in result["published"]:
            add(name, index, scored=True)


if __name__ == "__main__":
    main()
