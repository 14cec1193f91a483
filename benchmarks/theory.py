"""Squared error against entropy: every codebook on Gaussian and Laplace weights, and the bound.

    python benchmarks/theory.py     # some minutes; needs octavo[plot]

Weights are independent here, so that nothing can be compensated for. A codebook may have any of 8
scales within an octave, as ``calibrate(..., absorb=True)`` chooses them. Two figures belong to each
scale: the squared error relative to the squares of the weights, and the entropy of the codes in
bits for each weight. Weights are rounded to the nearest level, or, rate-aware, to the level of
least ``error + price * bits``, where ``bits`` are those of the codes that come out. The points of a
codebook are the best scales at a sweep of prices.

No coder of any kind gets below the rate-distortion function. For Gaussian weights it is
``error = 2^(-2 bits)`` (Shannon, 1959). For Laplace weights the algorithm of Blahut and Arimoto
(1972) finds it, and where it is nearer, Shannon's lower bound is taken.

Writes benchmarks/results/theory.json and docs/theory.svg. ``--draw`` draws the result that is
there.
"""

import argparse
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import new, save  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor

from octavo.formats.registry import codebook_at
from octavo.formats.width import read_width
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes
from octavo.report.colours import LIGHT
from octavo.runs.run import environment
from octavo.runs.run_folder import Json, write_json

RESULT = Path(__file__).parent / "results" / "theory.json"
PICTURE = Path(__file__).parents[1] / "docs" / "theory.svg"
CODEBOOKS = ("2", "3", "4", "5", "apot5", "apot6", "apot7", "apot8", "fp4", "fp6", "fp8", "int8")
WEIGHTS = 2048  # the positive ones
IN_AN_OCTAVE = 8
OCTAVES = 18  # of the largest level, from the standard deviation on
PRICES = 2.0 ** np.arange(-14, 0.1)  # error for a bit, relative to the variance
ESTIMATES = 4  # times that the bits of codes are estimated
FEWER = 0.02  # bits between two points
LEAST_BITS = 0.25  # with fewer bits hardly anything but zeros is left
SLOPES = 2.0 ** np.arange(-0.5, 5.1, 0.5)  # of the rate-distortion function, nats for an error
GRID = np.arange(-12, 12.01, 0.03)  # of Blahut and Arimoto, in standard deviations
ENTROPY_POWER = {"Gaussian": 1.0, "Laplace": math.e / math.pi}  # relative to the variance

RANGE = (1.0, 4.0)  # bits, in the picture
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {  # a codebook: its name there, and its line
    "int8": ("integers", {"color": LIGHT["third"], "linewidth": 4, "alpha": 0.45}),
    "fp4": ("fp4", {"color": LIGHT["fourth"], "linestyle": "-."}),
    "apot5": ("apot5", {"color": LIGHT["second"], "linestyle": "--"}),
    "5": ("powers of two", {"color": LIGHT["first"]}),
}

Vector = NDArray[np.float64]


def quantiles(kind: str) -> Tensor:
    """Return the positive ones of weights that are spread as the distribution is, of variance 1:
    all else is symmetric.
    """
    share = (torch.arange(WEIGHTS, dtype=torch.float64) + 0.5) / WEIGHTS
    gaussian = kind == "Gaussian"
    weight = torch.special.ndtri((1 + share) / 2) if gaussian else -torch.log1p(-share)
    return weight / weight.square().mean().sqrt()


def rounded(weight: Tensor, levels: Tensor, price: float) -> tuple[float, float]:
    """Return the entropy of codes in bits a weight, and the squared error, if bits have a price.

    ``levels`` are those of at least 0.
    """
    codes = Rounding(levels)(weight)
    zero = len(levels) - 1
    every = torch.cat((zero - codes, zero + codes))
    for _ in range(ESTIMATES if price else 0):
        bits = bits_of_codes(every, 2 * zero + 1)[zero:]
        priced = Prices(bits, torch.tensor(price, dtype=torch.float64))
        codes = Rounding(levels, prices=priced)(weight)
        every = torch.cat((zero - codes, zero + codes))
    share = every.bincount().double() / len(every)
    entropy = -torch.special.xlogy(share, share).sum() / math.log(2)
    return float(entropy), float((weight - levels[codes]).square().mean())


def curve(weight: Tensor, unit: Tensor, *, aware: bool) -> list[list[float]]:
    """Return bits and errors at the best scale for each price: first where bits cost nothing."""
    found: list[Point] = []
    for price in (0.0, *PRICES):
        at = partial(_at, weight, unit, price if aware else 0.0)
        coarse = map(at, range(0, OCTAVES * IN_AN_OCTAVE, IN_AN_OCTAVE // 2))
        near = [min(coarse, key=lambda one: one.cost(price)), *found[-1:]]
        steps = {one.step + by for one in near for by in range(-3, 4)}
        best = min(map(at, sorted(steps)), key=lambda one: one.cost(price))
        if not found or LEAST_BITS <= best.bits < found[-1].bits - FEWER:
            found.append(best)
    return [[float(f"{value:.4g}") for value in (one.bits, one.error)] for one in found]


@dataclass(frozen=True)
class Point:
    """A scale, in parts of an octave, with the bits and the error that it leads to."""

    step: int
    bits: float
    error: float

    def cost(self, price: float) -> float:
        """Return the error, with bits at a price."""
        return self.error + price * self.bits


def _at(weight: Tensor, unit: Tensor, price: float, step: int) -> Point:
    return Point(step, *rounded(weight, 2 ** (step / IN_AN_OCTAVE) * unit, price))


def blahut_arimoto(mass: Vector, slope: float) -> tuple[float, float]:
    """Return a point of the rate-distortion function, from below: bits and squared error."""
    distance = np.square(GRID[:, None] - GRID)
    kernel = np.exp(-slope * distance)
    output = mass.copy()
    gain = np.ones_like(output)
    for _ in range(3000):
        at_input = kernel @ output
        gain = kernel.T @ (mass / at_input)
        if math.log(gain.max()) < 1e-3:
            break
        output *= gain
    at_input = kernel @ output
    error = float(mass / at_input @ (kernel * distance) @ output)
    nats = -slope * error - float(mass @ np.log(at_input)) - math.log(gain.max())
    return nats / math.log(2), error


def masses(kind: str) -> Vector:
    """Return the probability of each point of the grid."""
    edges = (GRID[1:] + GRID[:-1])[: len(GRID) // 2] / 2  # below zero; the rest is symmetric
    if kind == "Gaussian":
        below = torch.special.ndtr(torch.from_numpy(edges)).numpy()
    else:
        below = np.exp(math.sqrt(2) * edges) / 2
    left = np.diff(below, prepend=0)
    return np.concatenate((left, [1 - 2 * left.sum()], left[::-1]))


def bound(kind: str) -> list[list[float]]:
    """Return points of the bound: bits and errors, fewest bits first."""
    power = ENTROPY_POWER[kind]
    if kind == "Gaussian":
        points = [(bits, 4.0**-bits) for bits in np.arange(0, 8.01, 0.5)]
    else:
        found = [(0.0, 1.0), *(blahut_arimoto(masses(kind), slope) for slope in SLOPES)]
        points = [(max(bits, math.log2(power / error) / 2), error) for bits, error in found]
        points += [(bits, power * 4.0**-bits) for bits in np.arange(4, 8.01, 0.5)]
    return [[float(f"{value:.4g}") for value in one] for one in points]


def above(points: list[list[float]], limit: list[list[float]]) -> list[list[float]]:
    """Add to each point how far its error is above the bound, in decibels."""
    bits, errors = np.array(limit).T
    lowest = np.interp([point[0] for point in points], bits, np.log10(errors))
    return [
        [*point, round(10 * (math.log10(point[1]) - float(least)), 2)]
        for point, least in zip(points, lowest, strict=True)
    ]


def computed() -> Json:
    known = [[bits, 4.0**-bits] for bits in np.arange(0, 8.01, 0.25)]
    by_algorithm = [list(blahut_arimoto(masses("Gaussian"), slope)) for slope in SLOPES]
    result: Json = {
        "environment": environment(),
        "weights": WEIGHTS,
        "algorithm_off_by_db": max(abs(point[2]) for point in above(by_algorithm, known)),
        "bound": {kind: bound(kind) for kind in ENTROPY_POWER},
        "codebooks": {},
    }
    for name in CODEBOOKS:
        unit = codebook_at(read_width(int(name) if name.isdigit() else name), torch.tensor(0))
        levels = unit.unit_levels().double()
        levels = levels[len(levels) // 2 :] / levels[-1]
        result["codebooks"][name] = {
            kind: {
                way: above(curve(quantiles(kind), levels, aware=aware), result["bound"][kind])
                for way, aware in (("nearest", False), ("rate-aware", True))
            }
            for kind in ENTROPY_POWER
        }
        print(name, result["codebooks"][name]["Gaussian"]["rate-aware"], flush=True)
    return result


# Drawing


def draw(result: Json) -> None:
    """Write the picture: how far four codebooks are above the bound, where bits have a price."""
    figure, panels = new(3.6, columns=2)
    for kind, panel in zip(result["bound"], panels, strict=True):
        panel.set_title(f"{kind} weights")
        panel.axhline(0, color=LIGHT["ink"], linewidth=2)
        panel.annotate("no coder gets below this line", (RANGE[0] + 0.1, 0.15))
        for name, (words, line) in DRAWN.items():
            curve = result["codebooks"][name][kind]["rate-aware"]
            bits, _, decibels = zip(*curve, strict=True)
            panel.plot(bits, decibels, **line)
            put_name(panel, words, curve, color=line["color"])
        panel.set_xlim(*RANGE)
        panel.set_xticks([1, 2, 3, 4])
        panel.set_ylim(-0.3, 9)
        panel.set_xlabel("bits for each weight, entropy-coded")
    panels[0].set_ylabel("squared error above the bound, dB")
    save(figure, PICTURE, "Squared error of codebooks above the rate-distortion function")


def put_name(panel: Any, words: str, curve: list[list[float]], **style: Any) -> None:
    """Write the name of a codebook where its line ends, or where it leaves the picture."""
    bits, _, decibels = zip(*curve, strict=True)
    if bits[0] < RANGE[1]:
        place, offset = (bits[0], decibels[0]), (-8, -3)
    else:
        height = float(np.interp(RANGE[1], bits[::-1], decibels[::-1]))
        place, offset = (RANGE[1], height), (-2, -14 if words == "integers" else 5)
    panel.annotate(words, place, offset, textcoords="offset points", ha="right", **style)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", action="store_true")
    torch.set_num_threads(1)
    if not parser.parse_args().draw:
        write_json(RESULT, computed())
    draw(json.loads(RESULT.read_text()))


if __name__ == "__main__":
    main()
