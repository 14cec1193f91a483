"""A layer as least-squares problems of one size, and the candidates for its codes."""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.formats.codebook import Codebook
from octavo.formats.registry import codebook_at
from octavo.formats.width import WidthLike
from octavo.formats.zeros import pruned_mask
from octavo.network.moments import Moments
from octavo.ptq.compensation import compensate
from octavo.ptq.least_squares import damped, least_squares_target, output_error, refit
from octavo.ptq.level_scale import LevelScale
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes
from octavo.ptq.settings import PtqOrder

__all__ = ["Candidate", "LayerProblem", "better"]

# The share of a bit's price that counts while weights freeze: see ``octavo.ptq.pricing``.
SHARE = 0.25


@dataclass(frozen=True)
class Candidate:
    """Codes of a layer's weights at one scale, and what they cost.

    Attributes:
        scale: the scale of the levels.
        codes: (problems, rows, columns).
        error: the squared error of each row's outputs, (problems, rows).
        paid: the price of each row's bits, same shape; zero where bits cost nothing.

    """

    scale: LevelScale
    codes: Tensor
    error: Tensor
    paid: Tensor

    @property
    def cost(self) -> Tensor:
        """The figure that candidates are compared by, (problems, rows)."""
        return self.error + self.paid


@dataclass(frozen=True)
class LayerProblem:
    """A layer as ``problems`` independent least-squares problems.

    Attributes:
        target: the weights that no codebook binds and that give the full-precision outputs best
            from the inputs as they are now: float64, (problems, rows, columns).
        start: the same, but for pruned weights, which are zero.
        kept: bool, the weights that are not pruned, same shape; None where no weight is pruned.
        hessian: ``H = X X^T``, float32, (problems, columns, columns).
        damped: ``H`` with the damping on its diagonal, float64, same shape.
        unit: the codebook whose largest exponent is 0.
        prices: what codes cost; None if only the error counts.

    """

    target: Tensor
    start: Tensor
    kept: Tensor | None
    hessian: Tensor
    damped: Tensor
    unit: Codebook
    prices: Prices | None = None

    @classmethod
    def of(
        cls, rows: Tensor, moments: Moments, bits: WidthLike, damp: float, pruned: Tensor
    ) -> "LayerProblem":
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

    @classmethod
    def independent(cls, rows: Tensor, bits: WidthLike) -> "LayerProblem":
        """Set up the problem of weights that cannot make up for each other."""
        weight = rows.flatten(1).double().unsqueeze(0)  # (1, rows, columns)
        kept = ~pruned_mask(rows).reshape(weight.shape)
        identity = torch.eye(weight.shape[2], dtype=torch.float32, device=rows.device).unsqueeze(0)
        unit = codebook_at(bits, torch.zeros((), dtype=torch.int32, device=rows.device))
        return cls(weight, weight, kept, identity, identity.double(), unit)

    def best_of(self, scales: list[LevelScale], order: PtqOrder) -> Candidate:
        """Solve one candidate for each scale, all in one call, and return the best."""
        count = len(scales)
        exponents = [scale.row_exponent() for scale in scales]
        factors = [scale.row_factor() for scale in scales]
        # In units of its own scale, every candidate has the same levels: the unit codebook's.
        in_units = [
            torch.ldexp(self.start, -exponent).div_(factor).float()
            for exponent, factor in zip(exponents, factors, strict=True)
        ]
        weight = torch.cat(in_units, 1)  # (problems, count * rows, columns)
        row_scales = map(torch.ldexp, factors, exponents)
        prices = self.prices and self.prices.in_units(torch.cat(list(row_scales), 1)).times(SHARE)
        below = [one for scale in scales if (one := scale.below_row()) is not None]
        rounding = Rounding(self.unit.levels(), torch.cat(below, 1) if below else None, prices)
        assignment = compensate(weight, self.damped, rounding, order, kept=self.kept)

        # |e X|^2 = e H_damped e^T - damping * |e|^2, and back from units: (problems, count * rows)
        damping = self.damped[:, :1, 0] - self.hessian[:, :1, 0]  # (problems, 1)
        errors = assignment.output_error - damping * assignment.weight_error
        errors = torch.ldexp(errors, 2 * torch.cat(exponents, 1).squeeze(2))
        errors *= torch.cat(factors, 1).squeeze(2).square()

        codes = assignment.codes.chunk(count, 1)
        paid = (_paid(self, one) for one in codes)
        parts = zip(scales, codes, errors.chunk(count, 1), paid, strict=True)
        best = functools.reduce(better, [Candidate(*part) for part in parts])
        return self.candidate(best.scale, best.codes)

    def candidate(self, scale: LevelScale, codes: Tensor) -> Candidate:
        """Return the candidate of these codes, its error measured."""
        error = _output_error(self, self.target - self._levels(scale, codes))
        return Candidate(scale, codes, error, _paid(self, codes))

    def with_gain(self, candidate: Candidate) -> Candidate:
        """Return a candidate with its levels times the factor of least error in each row.

        With ``t`` the target and ``q`` the levels of a row, that is ``t H q^T / q H q^T``, as far
        as it is within an octave.
        """
        level = self._levels(candidate.scale, candidate.codes)
        bent = level @ self.hessian.double()  # q H
        own = (bent * level).sum(2)  # (problems, rows)
        gain = (bent * self.target).sum(2) / own.clamp(min=torch.finfo(own.dtype).tiny)
        gain = torch.where(own > 0, gain.clamp(0.5, 2), 1)
        return self.candidate(candidate.scale.times(gain.flatten()), candidate.codes)

    def relative_error(self, candidate: Candidate) -> float:
        """Return ``|error| / |output|`` over all rows, or 0 where there is no output."""
        whole = self._squared_output
        return math.sqrt(float(candidate.error.sum()) / whole) if whole > 0 else 0.0

    def _levels(self, scale: LevelScale, codes: Tensor) -> Tensor:
        """Return the levels that codes stand for, float64, (problems, rows, columns)."""
        unit_levels = self.unit.decode(codes).double()
        return torch.ldexp(unit_levels, scale.exponent()).mul_(scale.row_factor())

    def priced(self, codes: Tensor, price: Tensor) -> "LayerProblem":
        """Return the problem in which codes take the bits that they take among ``codes``.

        Args:
            codes: any codes of the layer's codebook.
            price: the squared output error that one bit is worth, (problems, rows, 1).

        """
        bits = bits_of_codes(codes, self.unit.width.level_count)
        return replace(self, prices=Prices(bits, price))

    def repriced(self, codes: Tensor) -> "LayerProblem":
        """Return the problem with the bits estimated anew, if they cost anything."""
        return self if self.prices is None else self.priced(codes, self.prices.price)

    @functools.cached_property
    def _squared_output(self) -> float:
        return float(_output_error(self, self.target).sum())


def _output_error(problem: LayerProblem, error: Tensor) -> Tensor:
    """Return ``|error @ X|^2`` of each row, float64, (problems, rows)."""
    # In units of the largest error, float32 has room for the squares, and it is faster.
    largest: Tensor = torch.linalg.vector_norm(error, torch.inf)
    unit = largest.clamp(min=torch.finfo(error.dtype).tiny)
    in_units = output_error((error / unit).float(), problem.hessian)
    return in_units.clamp(min=0).double() * unit.square()


def _paid(problem: LayerProblem, codes: Tensor) -> Tensor:
    """Return the price of each row's codes, (problems, rows)."""
    if problem.prices is None:
        return torch.zeros_like(problem.target[:, :, 0])
    return problem.prices.of(codes)


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


def better(first: Candidate, other: Candidate) -> Candidate:
    """Return the candidate of less cost, or row by row where each row has its own scale; of
    equals, the first.
    """
    if not first.scale.max_exponent.dim():
        return other if other.cost.sum() < first.cost.sum() else first
    other_wins = other.cost < first.cost  # (problems, rows)
    scale = first.scale.where(other_wins.flatten(), other.scale)  # the channels are all rows
    codes = torch.where(other_wins.unsqueeze(2), other.codes, first.codes)
    error = torch.where(other_wins, other.error, first.error)
    return Candidate(scale, codes, error, torch.where(other_wins, other.paid, first.paid))
