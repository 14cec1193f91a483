"""Squared error of sums of two powers of two, beside powers of two and other choices of levels.

    python benchmarks/apot.py                       # a minute
    python benchmarks/ptq.py --only resnet20/apot   # their accuracy

The error is relative to the squares of the weights. Every weight is at its nearest level, and the
scale of each row is the best power of two. For Gaussian and Laplace weights it is the mean over 16
standard deviations within one octave, of the weights of benchmarks/codebooks.py; for ResNet-20,
where each channel of each layer is a row, it is that of all weights together. Writes
benchmarks/results/apot.json.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from octavo.formats.codebook import Codebook, edges
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot
from octavo.network.layers import channels_first, find_layers
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

RESULT = Path(__file__).parent / "results" / "apot.json"
QUANTILES = 1 << 12  # the positive ones of the 8,192 weights of codebooks.py
DEVIATIONS = 16
OCTAVES = 8  # how far below the largest weight the largest level is looked for


def distributions() -> dict[str, list[Tensor]]:
    """Return matrices of weights by name, a row for each scale; without signs, as levels are
    symmetric.
    """
    share = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    deviations = 2 ** (torch.arange(DEVIATIONS, dtype=torch.float64) / DEVIATIONS).unsqueeze(1)
    model = Cifar10(depth=20, weights="~/.cache/octavo/resnet20-cifar10.safetensors").model()
    layers = find_layers(model)[0]
    return {
        "gaussian": [torch.special.ndtri(share / 2 + 0.5) * deviations],
        "laplace": [-torch.log1p(-share) * deviations],
        "resnet20": [
            channels_first(layer.weight.detach(), layer.groups).flatten(1).abs().double()
            for layer in layers
        ],
    }


def grids() -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the levels of each choice: zero first, then the positive levels."""
    for bits in (4, 5, 6):
        yield f"powers of two/{bits}", positive(PowerOfTwo(bits, torch.tensor(0)))
    for bits in (5, 6, 7, 8):
        count = 1 << (bits - 1)
        yield f"ours/{bits}", positive(codebook_at(Apot(bits), torch.tensor(0)))
        yield f"APoT's own/{bits}", interleaved(bits - 1)
        for name, mantissas in {
            "2^e {1, 1.5}": (1.0, 1.5),
            "2^e {1, 1.25, 1.5}": (1.0, 1.25, 1.5),
            "2^e {1, 1.25, 1.5, 1.75}": (1.0, 1.25, 1.5, 1.75),
            "2^e {1, 1.125, 1.25, 1.5, 1.75, 1.875}": (1.0, 1.125, 1.25, 1.5, 1.75, 1.875),
        }.items():
            octaves = [m * 2.0**e for e in range(0, -count, -1) for m in reversed(mantissas)]
            yield (
                f"{name}/{bits}",
                torch.tensor([0.0, *reversed(octaves[: count - 1])], dtype=torch.float64),
            )
        every = [n for n in range(1, 1 << 14) if two_powers(n)]
        yield (
            f"the first sums of two signed powers/{bits}",
            torch.tensor([0, *every[: count - 1]], dtype=torch.float64),
        )


def positive(codebook: Codebook) -> Tensor:
    levels = codebook.levels().double()
    return levels[len(levels) // 2 :]


def interleaved(bits: int) -> Tensor:
    """Return the sums of two sets of powers that take turns (arXiv 1909.13144, eq. 5), without the
    bit of the sign.
    """
    counts = (bits + 1) // 2, bits // 2
    parts = [
        [0.0, *(2.0 ** -(2 * i + at) for i in range((1 << count) - 1))]
        for at, count in enumerate(counts)
    ]
    return torch.tensor(sorted({a + b for a in parts[0] for b in parts[1]}), dtype=torch.float64)


def two_powers(number: int) -> bool:
    """Tell whether ``number`` is a sum or difference of at most two powers of two."""
    return any((abs(number - (1 << e))).bit_count() <= 1 for e in range(number.bit_length() + 1))


def least_errors(rows: Tensor, levels: Tensor) -> Tensor:
    """Return the squared error of each row at its best scale."""
    start = torch.ceil(torch.log2(rows.amax(1, keepdim=True).clamp(min=1e-30) / levels[-1]))
    errors = []
    for down in range(OCTAVES):
        scale = 2 ** (start - down)
        nearest = levels[torch.bucketize(rows / scale, edges(levels), right=True)] * scale
        errors.append((rows - nearest).square().sum(1))
    return torch.stack(errors).amin(0)


def relative_error(kind: str, matrices: list[Tensor], levels: Tensor) -> float:
    lost = torch.cat([least_errors(rows, levels) for rows in matrices])
    squares = torch.cat([rows.square().sum(1) for rows in matrices])
    together = kind == "resnet20"
    return float(lost.sum() / squares.sum() if together else (lost / squares).mean())


def main() -> None:
    weights = distributions()
    rows = {
        name: {kind: relative_error(kind, some, levels) for kind, some in weights.items()}
        for name, levels in grids()
    }
    for name, row in rows.items():
        print(f"{name:44}", *(f"{kind} {error:.5f}" for kind, error in row.items()))
    result = {"environment": environment(), "relative_squared_error": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
