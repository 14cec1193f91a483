"""The codebooks beside each other: their error on weights, and what they cost a network.

    python benchmarks/codebooks.py                        # the table of errors: a minute
    python benchmarks/codebooks.py --networks             # and networks: half an hour
    python benchmarks/codebooks.py --networks --only llama  # only rows whose names begin so

The error is relative to the squares of the weights, for nearest levels at the best power of two as
scale: for Gaussian and Laplace weights, with one exponent for a row of 8,192 and with one for each
32 weights, as the mean over 16 standard deviations within one octave. Beside it is the error of
powers of two by INQ's rule (``fit="max"``) on Gaussian weights, with one exponent for a row.

The networks are quantized by ``calibrate``. ResNet-20 sees 1,024 unlabelled training images of
CIFAR-10, and its score is the accuracy on the test images in per cent. ``llama`` is stories260K
(``--llama``: the file of its weights and tokens; beside it is its configuration): it sees 64
stories of its own, and its scores are the KL divergence to full precision and the perplexity on 32
others. ``integers`` are symmetric integers of 4 bits with float16 scales, to nearest or by GPTQ:
see benchmarks/integers.py; their codes are entropy-coded alike, and their scales count. Rows are
written as they come, and skipped if they are there. Writes benchmarks/results/codebooks.json.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from integers import integer_network  # type: ignore[import-not-found]  # its neighbour
from llama import LLAMA, load  # type: ignore[import-not-found]  # its neighbour
from torch import nn

from octavo import Plan, calibrate
from octavo.formats.fitting import Fit
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import Width, read_width, write_width
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "codebooks.json"
WEIGHTS = 1 << 13
DEVIATIONS = 16
WIDTHS = [*map(read_width, (2, 3, 4, 5)), *map(read_width, ("apot5", "apot6", "apot7", "apot8"))]
WIDTHS += [read_width(text) for text in ("fp4", "fp6", "fp8", "int8")]
IMAGES = 1024
INTEGER_BITS = 4
PERS: dict[str, Any] = {
    "channel": "channel",
    "group 128": ("group", 128),
    "group 64": ("group", 64),
    "group 32": ("group", 32),
}


class Network(Protocol):
    """A network that is quantized and scored."""

    model: nn.Module
    inputs: list[Any]

    def score(self, quantized: nn.Module) -> dict[str, float]:
        """Return what is measured of the quantized network."""


Measure: TypeAlias = Callable[[Network], dict[str, Any]]


def errors(width: Width, fit: Fit = "mse") -> dict[str, float]:
    """Return the relative squared error by distribution and by what shares an exponent."""
    share = (torch.arange(WEIGHTS, dtype=torch.float64) + 0.5) / WEIGHTS
    kinds = {
        "gaussian": torch.special.ndtri(share),
        "laplace": -torch.sign(share - 0.5) * torch.log1p(-(2 * share - 1).abs()),
    }
    order = torch.randperm(WEIGHTS, generator=torch.Generator().manual_seed(0))
    found = {}
    for kind, values in kinds.items():
        deviations = 2 ** (torch.arange(DEVIATIONS, dtype=torch.float64) / DEVIATIONS)
        weight = (values[order] * deviations.unsqueeze(1)).float()
        for name in ("channel", "group 32"):
            book = fitted_codebook(weight, width, fit=fit, per=PERS[name])
            lost = (weight - book.project(weight)).double().square().sum(1)
            error = (lost / weight.double().square().sum(1)).mean()
            found[f"{kind}, per {name}"] = float(f"{float(error):.3g}")
    return found


def powers_in_a_level(width: Width) -> int:
    """Return the most signed powers of two that a level is a sum of: what a product takes in
    shifts.
    """
    unit = codebook_at(width, torch.tensor(0)).unit_levels().double()
    smallest = unit[len(unit) // 2 + 1]
    whole = [int(level) for level in unit / smallest]
    # The bits of n XOR 3n are where the non-adjacent form of n has a power of two, one place up.
    return max((abs(n) ^ (3 * abs(n))).bit_count() for n in whole)


class ResNet:
    """ResNet-20 on CIFAR-10."""

    def __init__(self) -> None:
        weights = "~/.cache/octavo/resnet20-cifar10.safetensors"
        self._task = Cifar10(depth=20, weights=weights, calibration_size=IMAGES)
        self.model = self._task.model()
        self.inputs = list(self._task.calibration())

    def score(self, quantized: nn.Module) -> dict[str, float]:
        """Return the accuracy on the test images, in per cent."""
        return {"accuracy": self._task.score(quantized)}


class Llama:
    """stories260K."""

    def __init__(self, path: Path) -> None:
        self.model, self._tokens = load(path)
        tokens = self._tokens["calibration_tokens"].split(8)
        self.inputs = [{"input_ids": batch, "use_cache": False} for batch in tokens]

    @torch.no_grad()
    def score(self, quantized: nn.Module) -> dict[str, float]:
        """Return the divergence from full precision and the perplexity, on the test tokens."""
        tokens = self._tokens["test_tokens"]
        before = self.model(input_ids=tokens).logits.log_softmax(2)
        after = quantized(input_ids=tokens).logits.log_softmax(2)
        divergence = (before.exp() * (before - after)).sum(2).mean()
        surprise = -after[:, :-1].gather(2, tokens[:, 1:, None]).mean()
        return {"divergence": float(divergence), "perplexity": math.exp(float(surprise))}


def rows(llama: Path) -> Iterator[tuple[str, Callable[[], Network], Measure]]:
    """Yield the name of each row, its network, and the function that measures it."""

    def of_llama() -> Network:
        return Llama(llama)

    for name, per in PERS.items():
        for text in ("fp4", 4, 3):
            measure = partial(calibrated, read_width(text), per=per)
            yield f"resnet20/{text}/per {name}", ResNet, measure
            yield f"resnet20/{text}/per {name}, absorbed", ResNet, partial(measure, absorb=True)
        for text in ("fp4", 4, "fp6", "int8"):
            measure = partial(calibrated, read_width(text), per=per)
            yield f"llama/{text}/per {name}", of_llama, measure
    for text in ("apot6", "apot8", "fp8"):
        yield f"llama/{text}/per channel", of_llama, partial(calibrated, read_width(text))
    for rate in (2, 4):
        measure = partial(calibrated, read_width("apot5"), rate=rate)
        yield f"llama/apot5/per channel, rate {rate}", of_llama, measure
    for name in ("channel", "group 128", "group 32"):
        group = 0 if name == "channel" else PERS[name][1]
        for how, gptq in (("nearest", False), ("GPTQ", True)):
            measure = partial(on_integers, group, gptq=gptq)
            yield f"llama/integers/per {name}, {how}", of_llama, measure


def calibrated(width: Width, network: Network, **arguments: Any) -> dict[str, Any]:
    """Quantize a network by ``calibrate`` and return its row."""
    plan = Plan.uniform(network.model, width)
    packed = calibrate(network.model, plan, network.inputs, **arguments)
    quantized = copy.deepcopy(network.model)
    packed.apply(quantized)
    return row(packed.stored_bits, packed.file_bytes, network.score(quantized))


def on_integers(group: int, network: Network, *, gptq: bool) -> dict[str, Any]:
    """Quantize a network to symmetric integers and return its row."""
    found = integer_network(network.model, network.inputs, INTEGER_BITS, group, gptq=gptq)
    return row(found.stored_bits, found.file_bytes, network.score(found.model))


def row(stored_bits: float, file_bytes: int, scores: dict[str, float]) -> dict[str, Any]:
    """Return the row of a quantized network."""
    rounded = {name: float(f"{value:.4g}") for name, value in scores.items()}
    return {"stored_bits": round(stored_bits, 3), "file_bytes": file_bytes, **rounded}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--llama", type=Path, default=LLAMA)
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"networks": {}}
    result |= {"environment": environment(), "images": IMAGES}
    result["weights"] = {
        str(write_width(width)): {
            "bits": width.bits,
            "levels": width.level_count,
            "powers_in_a_level": powers_in_a_level(width),
            "relative_squared_error": errors(width),
        }
        for width in WIDTHS
    }
    result["inq_rule"] = {
        str(bits): errors(Width(bits), "max")["gaussian, per channel"] for bits in (2, 3)
    }
    for name, row in result["weights"].items():
        print(name, row)
    write_json(RESULT, result)
    for name, network, measure in rows(arguments.llama) if arguments.networks else ():
        if name in result["networks"] or not name.startswith(arguments.only):
            continue
        result["networks"][name] = measure(network())
        print(name, result["networks"][name], flush=True)
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
