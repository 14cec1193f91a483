"""PTQ of one layer at one width: the exponents of its codebook, and the code of each weight.

Several exponents are candidates. All of them are solved at once, as so many rows more of
one problem, and each output channel takes the candidate of least output error.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import Codebook
from octavo.formats.fitting import check_finite, read_per
from octavo.formats.registry import codebook_at, fitted_codebook, with_exponents
from octavo.formats.width import WidthLike
from octavo.formats.zeros import pruned_mask
from octavo.network.layers import Layer, channels_first
from octavo.network.moments import Moments
from octavo.network.thread_state import without_autocast
from octavo.ptq.exponents import Start, start_of
from octavo.ptq.layer_problem import Candidate, LayerProblem, better
from octavo.ptq.level_scale import LevelScale
from octavo.ptq.pricing import at_rate
from octavo.ptq.settings import PtqSettings

__all__ = ["Solution", "solve"]

# Factors within an octave that levels are tried with where a batch norm cancels a channel's scale.
FACTORS = tuple(2 ** (eighth / 8) for eighth in (-4, -3, -2, -1, 1, 2, 3))


@dataclass(frozen=True)
class Solution:
    """A layer's codes, and how far its outputs are off: ``|error| / |output|`` over the inputs.

    Attributes:
        codebook: the layer's levels.
        codes: uint8, the shape of the weight with its output channels first.
        nearest: relative output error if every weight took its nearest level.
        compensated: relative output error of ``codes``.
        factor: per-channel factor that restores the scale of the original weights, (channels,);
            None if the levels were not rescaled.
        rounding: the solution in which every weight takes its nearest level; None for itself.
        measured: relative error of the real outputs of the layer's module, see
            ``octavo.ptq.choosing``; None if they were not computed.

    """

    codebook: Codebook
    codes: Tensor
    nearest: float
    compensated: float
    factor: Tensor | None = None
    rounding: "Solution | None" = None
    measured: float | None = None


@without_autocast()
def solve(
    layer: Layer,
    moments: Moments,
    bits: WidthLike,
    settings: PtqSettings,
    *,
    scaled: bool = False,
    pruned: Tensor | None = None,
) -> Solution:
    """Find the codes of ``layer`` that keep its full-precision outputs best; they are never worse
    than rounding to the nearest level.

    Pruned weights freeze first, at zero, so that only the others compensate.

    Args:
        layer: the layer.
        moments: the moments of its inputs.
        bits: its width.
        settings: the order, the fit, what shares an exponent, and the damping.
        scaled: True if each channel's levels may be multiplied with a factor within an octave,
            which the caller lets a batch norm cancel.
        pruned: true where a weight is pruned and zero, the shape of the weight; None takes zeros
            for pruned weights where ``octavo.formats.zeros.pruned_mask`` does.

    Raises:
        PlanError: the layer's weights or its inputs are not finite.

    """
    rows = channels_first(layer.weight.detach().float(), layer.groups)
    check_finite(rows, layer.name)
    _check_inputs(moments, layer.name)
    if layer.form == "embedding" and not layer.tied:
        return _looked_up(layer, rows, bits, settings)
    pruned = pruned_mask(rows) if pruned is None else channels_first(pruned, layer.groups)
    problem = LayerProblem.of(rows, moments, bits, settings.damp, pruned)
    start = _start(problem, rows, settings, layer.name)
    size = start.scale.group_size
    scaled = scaled and start.scale.max_exponent.dim() > 0  # a factor needs a channel of its own
    shape = problem.target.shape
    scales = [LevelScale.of(exponent, size, shape) for exponent in start.exponents]
    if scaled:
        scales += [scales[0].times(factor) for factor in FACTORS]
    solved = start.problem.best_of(scales, "gptq")
    problem = start.problem.repriced(solved.codes)
    if settings.order != "gptq" or settings.rate:
        # Only the scales that GPTQ chose: other orders are slow, and its codes tell the bits.
        solved = problem.best_of([solved.scale], settings.order)
    nearest = problem.candidate(start.scale, start.codes)
    best = better(nearest, solved)
    if scaled and settings.rate:  # what rounds to zero more often than not makes outputs smaller
        best = problem.with_gain(best)
    rounded = _solution(problem, nearest, nearest, rows.shape)
    factor = best.scale.factor if scaled else None
    return replace(_solution(problem, best, nearest, rows.shape), factor=factor, rounding=rounded)


def _solution(
    problem: LayerProblem, candidate: Candidate, nearest: Candidate, shape: torch.Size
) -> Solution:
    """Return a candidate as a solution of the layer, whose codes have a shape."""
    scale = candidate.scale
    return Solution(
        codebook_at(problem.unit.width, scale.max_exponent, scale.group_size),
        candidate.codes.reshape(shape),
        problem.relative_error(nearest),
        problem.relative_error(candidate),
    )


def _start(problem: LayerProblem, rows: Tensor, settings: PtqSettings, name: str) -> Start:
    start = start_of(problem, rows, read_per(settings.per, name), settings.fit, name)
    return at_rate(start, rows, settings.rate, settings.fit) if settings.rate else start


def _looked_up(layer: Layer, rows: Tensor, bits: WidthLike, settings: PtqSettings) -> Solution:
    """Return the solution of a layer that looks rows up: each weight is rounded by itself. Its
    inputs are one-hot, so no weight can make up for another, and the second moment has no part in
    it.
    """
    codebook = fitted_codebook(rows, bits, fit=settings.fit, per=settings.per, name=layer.name)
    codes = codebook.encode(rows)
    if settings.rate:
        problem = LayerProblem.independent(rows, bits)
        scale = LevelScale.of(codebook.max_exponent, codebook.group_size, problem.target.shape)
        start = Start(problem, scale, codes, [])
        start = at_rate(start, rows, settings.rate, settings.fit)
        codebook = with_exponents(codebook, start.scale.max_exponent)
        codes = start.codes.view(rows.shape)
    lost = float(torch.linalg.vector_norm(rows - codebook.decode(codes), dtype=torch.float64))
    whole = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
    error = lost / whole if whole > 0 else 0.0
    return Solution(codebook, codes, error, error)


def _check_inputs(moments: Moments, name: str) -> None:
    sums = [moments.hessian.sum(dtype=torch.float64), moments.drift.sum(dtype=torch.float64)]
    if math.isfinite(sum(map(float, sums))):
        return
    if 0 < moments.too_large < math.inf:
        squares = moments.hessian.diagonal(dim1=1, dim2=2)
        columns = sorted(set((~squares.isfinite()).nonzero()[:, 1].tolist()))
        raise PlanError(
            f"{name}: expected calibration inputs whose squares fit float32, below about 1e18, got "
            f"{moments.too_large:.2g} in {len(columns)} of {squares.shape[1]} columns, the first "
            f"being {columns[0]}; scale them down (and their weights up), or leave the layer out "
            "of the plan"
        )
    raise PlanError(
        f"{name}: expected finite calibration inputs, got some that are NaN or infinite"
    )
