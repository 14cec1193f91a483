"""The smallest file at every accuracy: octavo's codebooks at several rates, beside integers.

    python benchmarks/rate.py                 # an hour: chooses, solves, scores
    python benchmarks/rate.py --sets 1        # one set of calibration images instead of three

ResNet-20 on CIFAR-10, calibrated from 1,024 unlabelled training images, all of it octavo's
``calibrate(..., absorb=True, rate=...)``. The rival has symmetric integers with one step for each
output channel, ``step`` times the root mean square of its weights. It is solved in the same order by
the same recursion from the same inputs, at prices of bits that are made in the same way. Each layer
may weigh what it weighs for octavo. Both have codes in the coder ``small`` and norms folded to
float16; the rival's steps cost nothing, since batch norms could absorb them.

Choices (which rates, steps and prices are published) are made on 2,000 training images that calibrate
nothing, by the divergence from full precision, from full-precision inputs. Then every row is solved
and scored on the test images, once. Rows are written as they come, and skipped if they are there.
Networks are kept in ~/.cache/octavo/rate, so that a new version of the file prices them again.
Writes benchmarks/results/rate.json and docs/rate.svg.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo import Packed, Plan, calibrate
from octavo.formats.width import Width
from octavo.network.copies import copied
from octavo.network.layers import Layer, find_layers
from octavo.network.moments import Moments
from octavo.ptq.sensitivity import rates_of_layers
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import pack

RESULT = Path(__file__).parent / "results" / "rate.json"
KEPT = Path("~/.cache/octavo/rate").expanduser()
IMAGES = 1024
SETS = 3
HELD_OUT = 2000
INTEGERS = torch.arange(-127.0, 128.0)  # levels of the rival, in steps
DAMP = PtqSettings.damp
ESTIMATES = 2  # times that the rival's bits are estimated, as octavo's are
OCTAVO = {
    "2": (0, 0.3),
    "3": (0, 0.3, 1),
    "4": (0, 0.7, 1.5, 3),
    "5": (0, 1, 3),
    "apot5": (4, 8, 13, 20, 30, 45),
}
STEPS = (0.5, 0.7, 1.0, 1.3, 1.7)
PRICES = (0, 1.5, 3)  # in units of step^2 / 12, the error of rounding a weight


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        name: its name in the result.
        solve: makes the network from images.

    """

    name: str
    solve: Callable[[nn.Module, Sequence[Tensor], bool], "Solved"]


@dataclass(frozen=True)
class Solved:
    """A network that was quantized.

    Attributes:
        codes: the codes of each layer, and the number of its levels.
        packed: the file's other tensors; for octavo the network itself.

    """

    codes: Mapping[str, tuple[Tensor, int]]
    packed: Packed


def octavo_at(width: str, rate: float) -> Contender:
    def solve(model: nn.Module, images: Sequence[Tensor], sequential: bool) -> Solved:
        plan = Plan.uniform(model, int(width) if width.isdigit() else width)
        packed = calibrate(
            model, plan, images, absorb=True, rate=rate, sequential=sequential
        ).with_floats("folded", model)
        codes = {
            name: (layer.codes, layer.codebook.width.level_count)
            for name, layer in packed.layers.items()
        }
        return Solved(codes, packed)

    return Contender(f"octavo/{width}/{rate:g}", solve)


def integers_at(step: float, price: float, weighted: bool) -> Contender:
    def solve(model: nn.Module, images: Sequence[Tensor], sequential: bool) -> Solved:
        network = copied(model)
        layers = find_layers(network)[0]
        planned = [(layer, Width(8, "int")) for layer in layers]
        rates = rates_of_layers(
            network,
            [(one, Width(5, "apot")) for one, _ in planned],
            [torch.cat(list(images))[:64]],
            PtqSettings(rate=1.0),
        )
        codes = {}

        def freeze(layer: Layer, moments: Moments, _: object) -> None:
            factor = rates[layer.name] if weighted else 1.0
            found, weight = integers(layer, moments, step * math.sqrt(factor), price)
            codes[layer.name] = (found, len(INTEGERS))
            with torch.no_grad():
                layer.weight.copy_(weight)

        freeze_sequentially(copied(model), network, layers, images, freeze)
        return Solved(codes, pack(network, {}).with_floats("folded", network))

    return Contender(f"integers/{step:g}/{price:g}/{'weighted' if weighted else 'equal'}", solve)
