"""One layer at one bit-width in closed form: which exponents, which codes."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import LARGEST, Codebook, Fit, Per, check_finite
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import WidthLike
from octavo.formats.zeros import pruned
from octavo.network.layers import Layer, channels_first
from octavo.network.moments import Moments
from octavo.ptq.gptq import PtqOrder, check_ptq_order, compensate
from octavo.ptq.least_squares import damped, least_squares_target, output_error, refit

__all__ = ["Settings", "Solution", "solve"]

PHASES = tuple(
    2 ** (step / 8) for step in (-4, -3, -2, -1, 1, 2, 3)
)  # of a grid of powers of two, within an octave


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a layer is solved.

    Attributes:
        order: which weights freeze first: see ``octavo.ptq.gptq.compensate``.
        fit: ``"max"`` is the paper's n1; ``"mse"`` tries the n1 of least squared error and its
            neighbours under the hessian.
        per: one n1 for the ``"layer"`` or one per output ``"channel"``.
        damp: share of the hessian's mean diagonal that is added to its diagonal.

    """

    order: PtqOrder = "gptq"
    fit: Fit = "mse"
    per: Per = "channel"
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_ptq_order(self.order)
        if (
            isinstance(self.damp, bool)
            or not isinstance(self.damp, int | float)
            or not 0 <= self.damp < math.inf
        ):
            raise PlanError(f"damp: expected a number of at least 0, got {self.damp!r}")


@dataclass(frozen=True)
class Solution:
    """A layer's codes, output channels first, and how far its outputs are off: ``|error| /
    |output|`` over the inputs.

    ``nearest`` is that of every weight at its nearest level, ``compensated`` that of the codes.
    ``factor``, (channels,), is what the levels are multiplied with to be like the weights; None
    where they are like them as they are.
    """

    codebook: Codebook
    codes: Tensor
    nearest: float
    compensated: float
    factor: Tensor | None = None


def solve(
    layer: Layer, moments: Moments, bits: WidthLike, settings: Settings, *, scaled: bool = False
) -> Solution:
    """The codes of ``layer`` that keep its full-precision outputs best; never worse than rounding
    to the nearest level.

    Weights that are pruned (see ``octavo.inq.partition.pruned``) freeze first, at zero: only the
    others make up for anything.

    Args:
        layer: which one.
        moments: of its inputs.
        bits: its width.
        settings: how.
        scaled: whether each channel's levels may be multiplied with a factor, within an octave, for
            something else to absorb.

    Raises:
        PlanError: the layer's weights or its inputs are not finite.

    """
    rows = channels_first(layer.weight.detach().float(), layer.groups)
    check_finite(rows, layer.name)
    if not math.isfinite(
        sum(float(sums.sum(dtype=torch.float64)) for sums in (moments.hessian, moments.drift))
    ):
        raise PlanError(
            f"{layer.name}: expected finite calibration inputs, got some that are NaN or infinite"
        )
    problem = _Problem.of(rows, moments, bits, settings.damp)
    if settings.fit == "mse":
        plain, tops = problem.fitted_tops(rows, settings.per, layer.name)
    else:
        plain = fitted_codebook(
            rows, bits, fit=settings.fit, per=settings.per, name=layer.name
        ).max_exponent
        tops = [plain]
    one = torch.ones_like(plain, dtype=torch.float64)
    grids = [_Grid(top, one) for top in tops] + [
        _Grid(tops[0], phase * one) for phase in PHASES if scaled and plain.dim()
    ]
    nearest = problem.candidate(
        _Grid(plain, one), codebook_at(bits, plain).encode(rows).view(problem.target.shape)
    )
    found = problem.compensated(grids, "gptq")
    if settings.order != "gptq":
        found = problem.compensated([found.grid], settings.order)
    chosen = _best([nearest, found])
    return Solution(
        codebook_at(bits, chosen.grid.max_exponent),
        chosen.codes.reshape(rows.shape),
        problem.relative(nearest),
        problem.relative(chosen),
        chosen.grid.factor if scaled and plain.dim() else None,
    )


@dataclass(frozen=True)
class _Grid:
    max_exponent: Tensor  # as the codebook has it
    factor: Tensor  # of all levels, float64, shape of top


@dataclass(frozen=True)
class _Candidate:
    grid: _Grid
    codes: Tensor  # (problems, rows, columns)
    error: Tensor  # (problems, rows): squared error of the outputs


@dataclass(frozen=True)
class _Problem:
    """All tensors (problems, rows, columns) or (problems, columns, columns), float64."""

    target: (
        Tensor  # what the weights should be if no grid bound them, on the inputs as they are now
    )
    start: Tensor  # likewise, pruned weights at zero
    kept: Tensor | None  # bool, shape of the target: what is not pruned; None where nothing is
    hessian: Tensor
    damped: Tensor
    unit: Codebook  # for n1 = 0

    @classmethod
    def of(cls, rows: Tensor, moments: Moments, bits: WidthLike, damp: float) -> "_Problem":
        hessian = damped(moments.hessian, damp)
        target = least_squares_target(rows.reshape(moments.drift.shape), hessian, moments.drift)
        unit = codebook_at(bits, torch.zeros((), dtype=torch.int32, device=rows.device))
        start, kept = target, ~pruned(rows).reshape(target.shape)
        if kept.all():
            return cls(target, start, None, moments.hessian, hessian, unit)
        start = refit(rows.reshape(target.shape).double(), target, hessian, kept)
        return cls(target, start, kept, moments.hessian, hessian, unit)

    def fitted_tops(self, rows: Tensor, per: Per, name: str) -> tuple[Tensor, list[Tensor]]:
        """The n1 of least squared error; that of least error if inputs did not depend on each
        other, and its neighbours.
        """
        weights = rows.reshape(self.target.shape).flatten(0, 1), self.start.flatten(0, 1).float()
        inputs = (
            self.hessian.diagonal(dim1=1, dim2=2)
            .unsqueeze(1)
            .expand_as(self.target)
            .reshape(weights[1].shape)
        )
        importance = torch.ones_like(inputs), inputs
        fit = functools.partial(
            fitted_codebook, width=self.unit.width, fit="mse", per=per, name=name
        )
        if per == "channel":  # both in one call
            plain, top = fit(
                torch.cat(weights), importance=torch.cat(importance)
            ).max_exponent.chunk(2)
        else:
            plain, top = (
                fit(some, importance=share).max_exponent
                for some, share in zip(weights, importance, strict=True)
            )
        return plain, [(top + step).clamp(self.unit.lowest, LARGEST) for step in (0, 1, -1)]

    def compensated(self, grids: list[_Grid], order: PtqOrder) -> _Candidate:
        """The best of one candidate for each grid; they share the linear algebra, as so many rows
        more.
        """
        tops, factors = (
            [self._by_row(getattr(grid, name)) for grid in grids]
            for name in ("max_exponent", "factor")
        )
        scaled = [
            (torch.ldexp(self.start, -top) / factor).float()
            for top, factor in zip(tops, factors, strict=True)
        ]
        codes, of_outputs, of_weights = compensate(
            torch.cat(scaled, 1), self.damped, self.unit.levels(), order, kept=self.kept
        )
        damping = self.damped[:, :1, 0] - self.hessian[:, :1, 0]
        errors = torch.ldexp(of_outputs - damping * of_weights, 2 * torch.cat(tops, 1).squeeze(2))
        errors *= torch.cat(factors, 1).squeeze(2).square()
        some = zip(grids, codes.chunk(len(grids), 1), errors.chunk(len(grids), 1), strict=True)
        found = _best([_Candidate(*one) for one in some])
        return self.candidate(found.grid, found.codes)

    def candidate(self, grid: _Grid, codes: Tensor) -> _Candidate:
        level = torch.ldexp(
            self.unit.levels().double()[codes.int()], self._by_row(grid.max_exponent)
        ) * self._by_row(grid.factor)
        return _Candidate(grid, codes, self._error(self.target - level))

    def relative(self, candidate: _Candidate) -> float:
        return math.sqrt(float(candidate.error.sum()) / self._whole) if self._whole > 0 else 0.0

    @functools.cached_property
    def _whole(self) -> float:
        return float(self._error(self.target).sum())

    def _error(self, lost: Tensor) -> Tensor:
        unit = (
            lost.abs().max().clamp(min=torch.finfo(lost.dtype).tiny)
        )  # so that float32, which is faster, has room for squares
        return (
            output_error((lost / unit).float(), self.hessian).clamp(min=0).double() * unit.square()
        )

    def _by_row(self, values: Tensor) -> Tensor:
        # In float64, as torch.ldexp may compute its power of two in the type of the exponent.
        return (
            values.double()
            .expand(self.target.shape[0] * self.target.shape[1])
            .view(self.target.shape[0], -1, 1)
        )


def _best(candidates: list[_Candidate]) -> _Candidate:
    """The one of least error, or row by row where each row has its own n1; of equals, the first."""
    best = candidates[0]
    for other in candidates[1:]:
        by_row = best.grid.max_exponent.dim() > 0
        better = (
            other.error < best.error
            if by_row
            else (other.error.sum() < best.error.sum()).expand_as(best.error)
        )
        where = better.flatten() if by_row else better.all()
        grid = _Grid(
            *(
                torch.where(where, getattr(other.grid, key), getattr(best.grid, key))
                for key in ("max_exponent", "factor")
            )
        )
        codes = torch.where(better.unsqueeze(2), other.codes, best.codes)
        best = _Candidate(grid, codes, torch.where(better, other.error, best.error))
    return best
