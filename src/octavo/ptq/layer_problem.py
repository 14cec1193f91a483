"""A layer as least-squares problems of one size, and the candidates for its codes."""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.formats.codebook import Codebook, power
from octavo.formats.registry import codebook_at
from octavo.formats.rows import spread
from octavo.formats.width import WidthLike
from octavo.formats.zeros import pruned_mask
from octavo.network.moments import Moments
from octavo.ptq.compensation import compensate
from octavo.ptq.least_squares import damped, least_squares_target, output_error, refit
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes
from octavo.ptq.settings import PtqOrder

__all__ = ["Candidate", "LayerProblem", "Scale", "better"]


@dataclass(frozen=True)
class Scale:
    """The scale of a candidate's levels: ``factor * 2^max_exponent``.

    Attributes:
        max_exponent: one, one per channel, or (channels, groups).
        factor: float64, one or one per channel.
        group_size: the inputs of a channel that share an exponent; 0 if there are no groups.

    """

    max_exponent: Tensor
    factor: Tensor
    group_size: int

    @classmethod
    def of(cls, max_exponent: Tensor, group_size: int, factor: float = 1.0) -> "Scale":
        """Make it from exponents and one factor for all channels."""
        by_row = max_exponent[:, 0] if group_size else max_exponent
        ones = torch.ones_like(by_row, dtype=torch.float64)
        return cls(max_exponent, factor * ones, group_size)

    @property
    def is_shared(self) -> bool:
        """True if all channels have the same exponent."""
        return self.max_exponent.dim() == 0

    @property
    def row_exponent(self) -> Tensor:
        """The largest exponent of each channel; one if all channels share it."""
        return self.max_exponent.amax(1) if self.group_size else self.max_exponent


@dataclass(frozen=True)
class Candidate:
    """Codes of a layer's weights at one scale, and what they cost.

    Attributes:
        scale: the scale of the levels.
        codes: (problems, rows, columns).
        error: the squared error of each row's outputs, (problems, rows).
        paid: the price of each row's bits, same shape; zero where bits cost nothing.

    """

    scale: Scale
    codes: Tensor
    error: Tensor
    paid: Tensor

    @property
    def cost(self) -> Tensor:
        """What candidates are compared by, (problems, rows)."""
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
    def of(cls, rows: Tensor, moments: Moments, bits: WidthLike, damp: float) -> "LayerProblem":
        """Set up the problem of a layer's weights, given with their output channels first."""
        hessian = damped(moments.hessian, damp)
        weight = rows.reshape(moments.drift.shape)  # (problems, rows, columns)
        target = least_squares_target(weight, hessian, moments.drift)
        unit = codebook_at(bits, torch.zeros((), dtype=torch.int32, device=rows.device))
        kept = ~pruned_mask(rows).reshape(target.shape)
        if kept.all():
            return cls(target, target, None, moments.hessian, hessian, unit)
        start = _refitted(weight.double(), target, hessian, kept)
        return cls(target, start, kept, moments.hessian, hessian, unit)

    @classmethod
    def independent(cls, rows: Tensor, bits: WidthLike) -> "LayerProblem":
        """Set up the problem of weights that cannot make up for each other."""
        weight = rows.flatten(1).double().unsqueeze(0)  # (1, rows, columns)
        kept = ~pruned_mask(rows).reshape(weight.shape)
        identity = torch.eye(weight.shape[2], device=rows.device).unsqueeze(0)
        unit = codebook_at(bits, torch.zeros((), dtype=torch.int32, device=rows.device))
        return cls(weight, weight, kept, identity, identity.double(), unit)

    def best_of(self, scales: list[Scale], order: PtqOrder) -> Candidate:
        """Solve one candidate for each scale, all in one call, and return the best."""
        count = len(scales)
        exponents = [self.by_row(scale.row_exponent) for scale in scales]
        factors = [self.by_row(scale.factor) for scale in scales]
        # In units of its own scale, every candidate has the same levels: the unit codebook's.
        in_units = [
            (torch.ldexp(self.start, -exponent) / factor).float()
            for exponent, factor in zip(exponents, factors, strict=True)
        ]
        weight = torch.cat(in_units, 1)  # (problems, count * rows, columns)
        scale = torch.cat([torch.ldexp(f, e) for f, e in zip(factors, exponents, strict=True)], 1)
        prices = self.prices and self.prices.in_units(scale)
        rounding = Rounding(self.unit.levels(), _scale_of_weights(self, scales), prices)
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

    def candidate(self, scale: Scale, codes: Tensor) -> Candidate:
        """Return the candidate of these codes, its error measured."""
        unit_levels = self.unit.levels().double()[codes.int()]  # (problems, rows, columns)
        in_exponent = torch.ldexp(
            unit_levels, _by_weight(self, scale.max_exponent, scale.group_size)
        )
        level = in_exponent * self.by_row(scale.factor)
        error = _output_error(self, self.target - level)
        return Candidate(scale, codes, error, _paid(self, codes))

    def by_weight(self, scale: Scale) -> Tensor:
        """Return a scale as a number, float64, that broadcasts to (problems, rows, columns)."""
        exponent = _by_weight(self, scale.max_exponent, scale.group_size)
        return torch.ldexp(self.by_row(scale.factor), exponent)

    def relative_error(self, candidate: Candidate) -> float:
        """Return ``|error| / |output|`` over all rows, or 0 where there is no output."""
        whole = self._squared_output
        return math.sqrt(float(candidate.error.sum()) / whole) if whole > 0 else 0.0

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

    def by_row(self, values: Tensor) -> Tensor:
        """Return one value, or one per channel, as (problems, rows, 1), float64: torch.ldexp may
        compute its power of two in the type of the exponent.
        """
        problems, rows, _ = self.target.shape
        return values.double().expand(problems * rows).view(problems, -1, 1)


def _output_error(problem: LayerProblem, error: Tensor) -> Tensor:
    """Return ``|error @ X|^2`` of each row, float64, (problems, rows)."""
    # In units of the largest error, float32 has room for the squares, and it is faster.
    unit = error.abs().max().clamp(min=torch.finfo(error.dtype).tiny)
    in_units = output_error((error / unit).float(), problem.hessian)
    return in_units.clamp(min=0).double() * unit.square()


def _paid(problem: LayerProblem, codes: Tensor) -> Tensor:
    """Return the price of each row's codes, (problems, rows)."""
    if problem.prices is None:
        return torch.zeros_like(problem.target[:, :, 0])
    return problem.prices.of(codes)


def _scale_of_weights(problem: LayerProblem, scales: list[Scale]) -> Tensor | None:
    """Return the scale of each weight in units of its row, float32, (problems, count * rows,
    columns); None if there are no groups.
    """
    if not scales[0].group_size:
        return None
    below = [scale.max_exponent - scale.row_exponent.unsqueeze(1) for scale in scales]
    by_weight = [_by_weight(problem, power(one), scales[0].group_size) for one in below]
    return torch.cat(by_weight, 1).float()


def _by_weight(problem: LayerProblem, values: Tensor, group_size: int) -> Tensor:
    """Return one value for each exponent as what broadcasts to (problems, rows, columns),
    float64.
    """
    if not group_size:
        return problem.by_row(values)
    problems, rows, columns = problem.target.shape
    by_channel = spread(values, torch.Size([problems * rows, columns]), group_size)
    return by_channel.double().view(problems, rows, columns)


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
    if first.scale.is_shared:
        return other if other.cost.sum() < first.cost.sum() else first
    other_wins = other.cost < first.cost  # (problems, rows)
    channel_wins = other_wins.flatten()  # (problems * rows,): the channels
    size = first.scale.group_size
    exponent_wins = channel_wins.unsqueeze(1) if size else channel_wins
    scale = Scale(
        torch.where(exponent_wins, other.scale.max_exponent, first.scale.max_exponent),
        torch.where(channel_wins, other.scale.factor, first.scale.factor),
        size,
    )
    codes = torch.where(other_wins.unsqueeze(2), other.codes, first.codes)
    error = torch.where(other_wins, other.error, first.error)
    return Candidate(scale, codes, error, torch.where(other_wins, other.paid, first.paid))
