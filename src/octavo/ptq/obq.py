"""OBQ (arXiv 2208.11580): each row freezes its weights in an order of its own.

Freezing ``w_j`` at the level ``q_j`` costs ``(w_j - q_j)^2 / [H^-1]_jj`` once the free weights of
the row are updated (Optimal Brain Surgeon)::

    w    <- w - (w_j - q_j) / [H^-1]_jj * [H^-1]_j
    H^-1 <- H^-1 - [H^-1]_j^T [H^-1]_j / [H^-1]_jj

The second line takes ``j`` out of the inverse. Since the orders differ, each row needs an inverse
of its own, so this is far slower than GPTQ (``octavo.ptq.gptq``).
"""

import math

import torch
from torch import Tensor

from octavo.ptq.assignment import Assignment
from octavo.ptq.rounding import Rounding
from octavo.ptq.settings import PtqOrder

__all__ = ["CHUNK", "obq"]

CHUNK = 1 << 21  # numbers in the rows' inverses that are worked on at once: they stay in the caches


def obq(weight: Tensor, hessian: Tensor, rounding: Rounding, order: PtqOrder) -> Assignment:
    """Find codes that make ``levels @ X`` close to ``weight @ X``, each row in its own
    order.

    Args:
        weight: (problems, rows, columns).
        hessian: ``X X^T`` of each problem, (problems, columns, columns), positive definite.
        rounding: the levels that each weight may take.
        order: ``"distance"`` freezes the weight next that costs least (OBQ; DNQ's criterion,
            weighted by the inputs), ``"magnitude"`` the largest (INQ's criterion).

    """
    problems, rows, columns = weight.shape
    inverse = torch.linalg.inv(hessian.double()).to(weight.dtype)  # (problems, columns, columns)
    problem_of_row = torch.arange(problems, device=weight.device).repeat_interleave(rows)
    flat = weight.reshape(-1, columns)  # (problems * rows, columns)
    rows_at_once = max(1, CHUNK // columns**2)
    codes = [
        _freeze_rows(
            flat[chunk].clone(), inverse[problem_of_row[chunk]], rounding.by_row(chunk), order
        )
        for chunk in torch.arange(len(flat), device=weight.device).split(rows_at_once)
    ]
    return Assignment.measured(torch.cat(codes).view(weight.shape), weight, hessian, rounding)


def _freeze_rows(weight: Tensor, inverse: Tensor, rounding: Rounding, order: PtqOrder) -> Tensor:
    """Return the codes of a chunk of rows, uint8, (rows, columns).

    Whenever a quarter of the weights has frozen, only what the others need is kept, so that the
    inverses shrink on the way.

    Args:
        weight: (rows, columns); it is overwritten.
        inverse: ``H^-1`` for each row, (rows, columns, columns); it is overwritten.
        rounding: the levels that each weight may take.
        order: the next weight to freeze.

    """
    every_row = torch.arange(len(weight), device=weight.device)
    codes = torch.zeros_like(weight, dtype=torch.int64)
    # The original column of each weight that is left, (rows, left).
    left = torch.arange(weight.shape[1], device=weight.device).expand_as(weight)
    while left.shape[1]:
        frozen = torch.zeros_like(weight, dtype=torch.bool)  # (rows, left)
        for _ in range(math.ceil(left.shape[1] / 4)):
            column, code = _freeze_one(weight, inverse, rounding, frozen, order)
            frozen[every_row, column] = True
            codes[every_row, left[every_row, column]] = code
        free = (~frozen).nonzero()[:, 1].view(len(weight), -1)  # (rows, left afterwards)
        left = left.gather(1, free)
        weight = weight.gather(1, free)
        rounding = rounding.picked(free)
        inverse = inverse[every_row.view(-1, 1, 1), free.unsqueeze(2), free.unsqueeze(1)]
    return codes.to(torch.uint8)


def _freeze_one(
    weight: Tensor, inverse: Tensor, rounding: Rounding, frozen: Tensor, order: PtqOrder
) -> tuple[Tensor, Tensor]:
    """Freeze the next weight of each row: update the row's free weights and its inverse in place,
    and return the column and the code of the weight, both (rows,).
    """
    every_row = torch.arange(len(weight), device=weight.device)
    variance = inverse.diagonal(dim1=1, dim2=2)  # [H^-1]_jj: (rows, left)
    codes = rounding(weight, 1 / variance)  # (rows, left)
    error = weight - rounding.level(codes)  # w - q
    # (w_j - q_j)^2 / [H^-1]_jj, or the magnitude
    cost = error.square() / variance if order == "distance" else -weight.abs()
    j = cost.masked_fill_(frozen, torch.inf).argmin(1)  # (rows,)
    inverse_row = inverse[every_row, j]  # [H^-1]_j: (rows, left)
    ratios = inverse_row / inverse_row[every_row, j].unsqueeze(1)  # [H^-1]_j / [H^-1]_jj
    weight.addcmul_(error[every_row, j].unsqueeze(1), ratios, value=-1)
    inverse.baddbmm_(ratios.unsqueeze(2), inverse_row.unsqueeze(1), alpha=-1)
    return j, codes[every_row, j]
