"""Solve the layers of a network at their widths, and put the solutions into the network."""

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from octavo.formats.width import Width
from octavo.network.layers import Layer
from octavo.network.moments import Moments
from octavo.progress import Event, Progress
from octavo.ptq.absorption import absorb_factor
from octavo.ptq.choosing import choose
from octavo.ptq.layer_solver import Solution, solve
from octavo.ptq.settings import PtqSettings
from octavo.ptq.site import Site
from octavo.storage.quantized import Quantized

__all__ = ["Freezer", "Frozen", "LayerResult"]


@dataclass(frozen=True)
class LayerResult:
    """The outcome of one layer: its relative output errors, and how many layers are done.

    The ``Event`` that has it as its detail says the last two as well. They are here for callbacks
    of the old ``observe=``, which are given no event.

    Attributes:
        name: the layer.
        bits: its width.
        nearest: relative output error if every weight took its nearest level.
        compensated: relative output error of the codes that were chosen.
        done: how many layers are done, this one included.
        layers: how many layers the plan names.
        seconds: the time since the layer before it, or since the first layer began.

    """

    name: str
    bits: Width
    nearest: float
    compensated: float
    done: int
    layers: int
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen layer.

    Attributes:
        quantized: its levels.
        rounding: the levels nearest to its weights.
        measured: relative error of the real outputs of its module when it froze; None if they were
            not computed.

    """

    quantized: Quantized
    rounding: Quantized
    measured: float | None


class Freezer:
    """A function of a layer that solves it and puts the solution into the network.

    Args:
        widths: the width of each layer, by name.
        settings: the settings of PTQ.
        norms: the batch norm that cancels a layer's scale, by the layer's name.
        pruned: true where a weight of a layer is pruned, by the layer's name; None lets zeros tell.
        progress: called after each layer.
        rates: the rates of layers that have another than that of the settings, by name.

    """

    def __init__(
        self,
        widths: Mapping[str, Width],
        settings: PtqSettings,
        norms: Mapping[str, nn.Module],
        pruned: Mapping[str, Tensor] | None,
        progress: Progress,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self._widths = widths
        self.settings = settings
        self._rates = rates or {}
        self._norms = norms
        self._pruned = pruned
        self._progress = progress
        self._count = itertools.count(1)
        self._last = time.monotonic()

    def __call__(self, layer: Layer, moments: Moments, site: Site | None) -> Frozen:
        """Freeze a layer, from the moments of its inputs and, where it has one, at its site."""
        norm = self._norms.get(layer.name)
        bits = self._widths[layer.name]
        settings = replace(self.settings, rate=self._rates.get(layer.name, self.settings.rate))
        pruned = self._pruned_of(layer)
        scaled = norm is not None

        def solve_from(moments: Moments) -> Solution:
            return solve(layer, moments, bits, settings, scaled=scaled, pruned=pruned)

        solution = choose(layer, moments, site, solve_from)
        rounding = solution.rounding or solution
        frozen = Frozen(_quantized(layer, solution), _quantized(layer, rounding), solution.measured)
        with torch.no_grad():
            layer.weight.copy_(frozen.quantized.weight())
        if norm is not None and solution.factor is not None:
            absorb_factor(layer, norm, solution.factor)
        self._report(layer.name, solution)
        return frozen

    def _pruned_of(self, layer: Layer) -> Tensor | None:
        if self._pruned is None:
            return None
        none = torch.zeros_like(layer.weight, dtype=torch.bool)
        return self._pruned.get(layer.name, none)

    def _report(self, name: str, solution: Solution) -> None:
        done = next(self._count)
        total = len(self._widths)
        bits = self._widths[name]
        began = self._last
        self._last = time.monotonic()
        result = LayerResult(
            name, bits, solution.nearest, solution.compensated, done, total, self._last - began
        )
        self._progress(Event("calibrate", done, total, detail=result))


def _quantized(layer: Layer, solution: Solution) -> Quantized:
    return Quantized.of(layer, solution.codebook, solution.codes.cpu())
