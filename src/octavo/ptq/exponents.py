"""The exponents of a layer's codebook that PTQ tries."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.formats.codebook import LARGEST
from octavo.formats.fitting import Fit, Per, group_size_of
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.ptq.layer_problem import LayerProblem
from octavo.ptq.level_scale import LevelScale

__all__ = ["Start", "neighbours", "start_of"]


@dataclass(frozen=True, eq=False)
class Start:
    """The start of the solution of a layer.

    Attributes:
        problem: the least-squares problem of the layer.
        scale: the best scale for weights that are rounded each by itself.
        codes: the codes of these, (problems, rows, columns).
        exponents: the exponents to try.

    """

    problem: LayerProblem
    scale: LevelScale
    codes: Tensor
    exponents: list[Tensor]


def start_of(problem: LayerProblem, rows: Tensor, per: Per, fit: Fit, name: str) -> Start:
    """Return where a layer's solution begins: at its nearest levels.

    Args:
        problem: the least-squares problem of the layer.
        rows: its weights, output channels first.
        per: what shares an exponent.
        fit: the choice of the exponent.
        name: the layer, for errors.

    """
    width = problem.unit.width
    size = group_size_of(per)
    if fit == "mse":
        fitted, exponents = _of_least_error(problem, rows, per, name)
    else:
        fitted = fitted_codebook(rows, width, fit=fit, per=per, name=name).max_exponent
        exponents = [fitted]
    codes = codebook_at(width, fitted, size).encode(rows).view(problem.target.shape)
    return Start(problem, LevelScale.of(fitted, size, codes.shape), codes, exponents)


def neighbours(problem: LayerProblem, exponent: Tensor) -> list[Tensor]:
    """Return an exponent and the two beside it, as far as the codebook has them."""
    lowest = problem.unit.lowest_max_exponent
    return [(exponent + step).clamp(lowest, LARGEST) for step in (0, 1, -1)]


def _of_least_error(
    problem: LayerProblem, rows: Tensor, per: Per, name: str
) -> tuple[Tensor, list[Tensor]]:
    """Return the exponent of least squared error of the weights, and the exponents to try: that
    of least output error if inputs did not depend on each other, and its two neighbours.
    """
    weight = rows.reshape(problem.target.shape).flatten(0, 1)  # (problems * rows, columns)
    start = problem.start.flatten(0, 1).float()
    # If inputs did not depend on each other, H would be its diagonal.
    energy = problem.hessian.diagonal(dim1=1, dim2=2)  # H_jj: (problems, columns)
    importance = energy.unsqueeze(1).expand_as(problem.target).reshape(start.shape)
    equal = torch.ones_like(importance)
    fit = functools.partial(
        fitted_codebook, width=problem.unit.width, fit="mse", per=per, name=name
    )
    if per != "tensor":  # each row has its own, so both fit in one call
        weights = torch.cat([weight, start])
        shares = torch.cat([equal, importance])
        fitted, exponent = fit(weights, importance=shares).max_exponent.chunk(2)
    else:
        fitted = fit(weight, importance=equal).max_exponent
        exponent = fit(start, importance=importance).max_exponent
    return fitted, neighbours(problem, exponent)
