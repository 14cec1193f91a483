"""PTQ of one layer at one width: the exponents of its codebook, and the code of each weight.

Several exponents are candidates. All of them are solved at once, as so many rows more of
one problem, and each output channel takes the candidate of least output error.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import LARGEST, Codebook
from octavo.formats.fitting import Fit, Per, check_finite, group_size_of, read_per
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import WidthLike
from octavo.formats.zeros import pruned_mask
from octavo.network.layers import Layer, channels_first
from octavo.network.moments import Moments
from octavo.network.thread_state import without_autocast
from octavo.ptq.compensation import compensate
from octavo.ptq.least_squares import damped, least_squares_target, output_error, refit
from octavo.ptq.level_scale import LevelScale
from octavo.ptq.rounding import Rounding
from octavo.ptq.settings import PtqOrder, PtqSettings

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
    per = read_per(settings.per, layer.name)
    size = group_size_of(per)
    pruned = pruned_mask(rows) if pruned is None else channels_first(pruned, layer.groups)
    problem = _Problem.of(rows, moments, bits, settings.damp, pruned)
    fitted, exponents = problem.exponents(rows, per, settings.fit, layer.name)
    scaled = scaled and fitted.dim() > 0  # a factor needs a channel of its own

    rounded = codebook_at(bits, fitted, size).encode(rows).view(problem.target.shape)
    shape = problem.target.shape
    nearest = problem.candidate(LevelScale.of(fitted, size, shape), rounded)
    scales = [LevelScale.of(exponent, size, shape) for exponent in exponents]
    if scaled:
        scales += [scales[0].times(factor) for factor in FACTORS]
    solved = problem.best_of(scales, "gptq")
    if settings.order != "gptq":  # the slower orders only get the scales that GPTQ chose
        solved = problem.best_of([solved.scale], settings.order)
    best = _better(nearest, solved)
    of_nearest = problem.relative_error(nearest)
    return Solution(
        codebook_at(bits, best.scale.max_exponent, size),
        best.codes.reshape(rows.shape),
        of_nearest,
        problem.relative_error(best),
        best.scale.factor if scaled else None,
        Solution(
            codebook_at(bits, fitted, size),
            nearest.codes.reshape(rows.shape),
            of_nearest,
            of_nearest,
        ),
    )


def _looked_up(layer: Layer, rows: Tensor, bits: WidthLike, settings: PtqSettings) -> Solution:
    """Return the nearest levels, which are best for a layer that looks rows up: its inputs are
    one-hot, so no weight can make up for another, and the second moment has no part in it.
    """
    codebook = fitted_codebook(rows, bits, fit=settings.fit, per=settings.per, name=layer.name)
    codes = codebook.encode(rows)
    lost = float((rows - codebook.decode(codes)).square().sum(dtype=torch.float64))
    whole = float(rows.square().sum(dtype=torch.float64))
    error = math.sqrt(lost / whole) if whole > 0 else 0.0
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


@dataclass(frozen=True)
class _Candidate:
    """Codes of a layer's weights at one scale, and the squared error of its outputs."""

    scale: LevelScale
    codes: Tensor  # (problems, rows, columns)
    error: Tensor  # squared error of the outputs, (problems, rows)


@dataclass(frozen=True)
class _Problem:
    """A layer as ``problems`` independent least-squares problems.

    Attributes:
        target: the weights that no codebook binds and that give the full-precision outputs best
            from the inputs as they are now: float64, (problems, rows, columns).
        start: the same, but for pruned weights, which are zero.
        kept: bool, the weights that are not pruned, same shape; None where no weight is pruned.
        hessian: ``H = X X^T``, float32, (problems, columns, columns).
        damped: ``H`` with the damping on its diagonal, float64, same shape.
        unit: the codebook whose largest exponent is 0.

    """

    target: Tensor
    start: Tensor
    kept: Tensor | None
    hessian: Tensor
    damped: Tensor
    unit: Codebook

    @classmethod
    def of(
        cls, rows: Tensor, moments: Moments, bits: WidthLike, damp: float, pruned: Tensor
    ) -> "_Problem":
        """Set up the problem of a layer's weights, given with their output channels first."""
        hessian = damped(moments.hessian, damp)
        weight = rows.reshape(moments.drift.shape)  # (problems, rows, columns)
        target = least_squares_target(weight, hessian, moments.drift)
        unit = codebook_at(bits, torch.zeros((), dtype=torch.int32, device=rows.device))
        kept = ~pruned.reshape(target.shape)
        if kept.all():
            return cls(target, target, None, moments.hessian, hessian, unit)
        start = _refitted(weight.double(), target, hessian, kept)
        return cls(target, start, kept, moments.hessian, hessian, unit)

    def exponents(self, rows: Tensor, per: Per, fit: Fit, name: str) -> tuple[Tensor, list[Tensor]]:
        """Return the exponent that fits the weights alone, and the exponents to try."""
        if fit == "mse":
            return self._least_error_exponents(rows, per, name)
        fitted = fitted_codebook(rows, self.unit.width, fit=fit, per=per, name=name)
        return fitted.max_exponent, [fitted.max_exponent]

    def _least_error_exponents(
        self, rows: Tensor, per: Per, name: str
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the exponent of least squared error of the weights, and the exponents to try: that
        of least output error if inputs did not depend on each other, and its two neighbours.
        """
        weight = rows.reshape(self.target.shape).flatten(0, 1)  # (problems * rows, columns)
        start = self.start.flatten(0, 1).float()
        # If inputs did not depend on each other, H would be its diagonal.
        energy = self.hessian.diagonal(dim1=1, dim2=2)  # H_jj: (problems, columns)
        importance = energy.unsqueeze(1).expand_as(self.target).reshape(start.shape)
        equal = torch.ones_like(importance)
        fit = functools.partial(
            fitted_codebook, width=self.unit.width, fit="mse", per=per, name=name
        )
        if per != "tensor":  # each row has its own, so both fit in one call
            weights = torch.cat([weight, start])
            shares = torch.cat([equal, importance])
            fitted, exponent = fit(weights, importance=shares).max_exponent.chunk(2)
        else:
            fitted = fit(weight, importance=equal).max_exponent
            exponent = fit(start, importance=importance).max_exponent
        neighbours = [exponent + step for step in (0, 1, -1)]
        return fitted, [one.clamp(self.unit.lowest_max_exponent, LARGEST) for one in neighbours]

    def best_of(self, scales: list[LevelScale], order: PtqOrder) -> _Candidate:
        """Solve one candidate for each scale, all in one call, and return the best."""
        count = len(scales)
        exponents = [scale.row_exponent() for scale in scales]
        factors = [scale.row_factor() for scale in scales]
        # In units of its own scale, every candidate has the same levels: the unit codebook's.
        in_units = [
            (torch.ldexp(self.start, -exponent) / factor).float()
            for exponent, factor in zip(exponents, factors, strict=True)
        ]
        weight = torch.cat(in_units, 1)  # (problems, count * rows, columns)
        below = [one for scale in scales if (one := scale.below_row()) is not None]
        rounding = Rounding(self.unit.levels(), torch.cat(below, 1) if below else None)
        assignment = compensate(weight, self.damped, rounding, order, kept=self.kept)

        # |e X|^2 = e H_damped e^T - damping * |e|^2, and back from units: (problems, count * rows)
        damping = self.damped[:, :1, 0] - self.hessian[:, :1, 0]  # (problems, 1)
        errors = assignment.output_error - damping * assignment.weight_error
        errors = torch.ldexp(errors, 2 * torch.cat(exponents, 1).squeeze(2))
        errors *= torch.cat(factors, 1).squeeze(2).square()

        codes = assignment.codes.chunk(count, 1)
        parts = zip(scales, codes, errors.chunk(count, 1), strict=True)
        best = functools.reduce(_better, [_Candidate(*part) for part in parts])
        return self.candidate(best.scale, best.codes)

    def candidate(self, scale: LevelScale, codes: Tensor) -> _Candidate:
        """Return the candidate of these codes, its error measured."""
        unit_levels = self.unit.levels().double()[codes.int()]  # (problems, rows, columns)
        level = torch.ldexp(unit_levels, scale.exponent()) * scale.row_factor()
        return _Candidate(scale, codes, self._output_error(self.target - level))

    def relative_error(self, candidate: _Candidate) -> float:
        """Return ``|error| / |output|`` over all rows, or 0 where there is no output."""
        whole = self._squared_output
        return math.sqrt(float(candidate.error.sum()) / whole) if whole > 0 else 0.0

    @functools.cached_property
    def _squared_output(self) -> float:
        return float(self._output_error(self.target).sum())

    def _output_error(self, error: Tensor) -> Tensor:
        """Return ``|error @ X|^2`` of each row, float64, (problems, rows)."""
        # In units of the largest error, float32 has room for the squares, and it is faster.
        unit = error.abs().max().clamp(min=torch.finfo(error.dtype).tiny)
        in_units = output_error((error / unit).float(), self.hessian)
        return in_units.clamp(min=0).double() * unit.square()


def _refitted(weight: Tensor, target: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """Return ``target`` but for rows with pruned weights, whose other weights are refitted to it.
    Conjugate gradients come near a solution only, so they need no float64.
    """
    some = (~kept).any(2).any(0).nonzero().flatten()  # rows that have lost weights in any problem
    start = target.clone()
    refitted = refit(
        weight[:, some].float(), target[:, some].float(), hessian.float(), kept[:, some]
    )
    start[:, some] = refitted.double()
    return start


def _better(first: _Candidate, other: _Candidate) -> _Candidate:
    """Return the candidate of less error, or row by row where each row has its own scale; of
    equals, the first.
    """
    if not first.scale.max_exponent.dim():
        return other if other.error.sum() < first.error.sum() else first
    other_wins = other.error < first.error  # (problems, rows)
    scale = first.scale.where(other_wins.flatten(), other.scale)  # the channels are all rows
    codes = torch.where(other_wins.unsqueeze(2), other.codes, first.codes)
    return _Candidate(scale, codes, torch.where(other_wins, other.error, first.error))
