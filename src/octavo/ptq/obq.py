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

from octavo.formats.codebook import edges
from octavo.ptq.assignment import Assignment
from octavo.ptq.settings import PtqOrder

__all__ = ["CHUNK", "obq"]

CHUNK = 1 << 21  # numbers in the rows' inverses that are worked on at once: they stay in the caches


def obq(
    weight: Tensor,
    hessian: Tensor,
    levels: Tensor,
    order: PtqOrder,
    *,
    scale: Tensor | None = None,
) -> Assignment:
    """Find codes that make ``levels[codes] @ X`` close to ``weight @ X``, each row in its own
    order.

    Args:
        weight: (problems, rows, columns).
        hessian: ``X X^T`` of each problem, (problems, columns, columns), positive definite.
        levels: the levels that each weight may take, ascending.
        order: ``"distance"`` freezes the weight next that costs least (OBQ; DNQ's criterion,
            weighted by the inputs), ``"magnitude"`` the largest (INQ's criterion).
        scale: the scale of each weight's levels, the shape of ``weight``; None if all are 1.

    """
    problems, rows, columns = weight.shape
    inverse = torch.linalg.inv(hessian.double()).to(weight.dtype)  # (problems, columns, columns)
    problem_of_row = torch.arange(problems, device=weight.device).repeat_interleave(rows)
    flat = weight.reshape(-1, columns)  # (problems * rows, columns)
    rows_at_once = max(1, CHUNK // columns**2)
    scales = torch.ones_like(flat) if scale is None else scale.reshape(flat.shape)
    codes = [
        _freeze_rows(
            flat[chunk].clone(), inverse[problem_of_row[chunk]], levels, scales[chunk], order
        )
        for chunk in torch.arange(len(flat), device=weight.device).split(rows_at_once)
    ]
    codes_of_all = torch.cat(codes).view(weight.shape)
    return Assignment.measured(codes_of_all, weight, hessian, levels, scale)


def _freeze_rows(
    weight: Tensor, inverse: Tensor, levels: Tensor, scale: Tensor, order: PtqOrder
) -> Tensor:
    """Return the codes of a chunk of rows, uint8, (rows, columns).

    Whenever a quarter of the weights has frozen, only what the others need is kept, so that the
    inverses shrink on the way.

    Args:
        weight: (rows, columns); it is overwritten.
        inverse: ``H^-1`` for each row, (rows, columns, columns); it is overwritten.
        levels: ascending.
        scale: the scale of each weight's levels, (rows, columns).
        order: the next weight to freeze.

    """
    every_row = torch.arange(len(weight), device=weight.device)
    boundaries = edges(levels)
    codes = torch.zeros_like(weight, dtype=torch.int64)
    # The original column of each weight that is left, (rows, left).
    left = torch.arange(weight.shape[1], device=weight.device).expand_as(weight)
    while left.shape[1]:
        frozen = torch.zeros_like(weight, dtype=torch.bool)  # (rows, left)
        for _ in range(math.ceil(left.shape[1] / 4)):
            code_of = torch.bucketize(weight / scale, boundaries, right=True)
            error = weight - levels[code_of] * scale  # w - q
            column = _freeze_one(weight, inverse, error, frozen, order)
            code = code_of[every_row, column]
            frozen[every_row, column] = True
            codes[every_row, left[every_row, column]] = code
        free = (~frozen).nonzero()[:, 1].view(len(weight), -1)  # (rows, left afterwards)
        left = left.gather(1, free)
        weight = weight.gather(1, free)
        scale = scale.gather(1, free)
        inverse = inverse[every_row.view(-1, 1, 1), free.unsqueeze(2), free.unsqueeze(1)]
    return codes.to(torch.uint8)


def _freeze_one(
    weight: Tensor, inverse: Tensor, error: Tensor, frozen: Tensor, order: PtqOrder
) -> Tensor:
    """Freeze the next weight of each row, given what each would be off: update the row's free
    weights and its inverse in place, and return the column of the weight, (rows,).
    """
    every_row = torch.arange(len(weight), device=weight.device)
    if order == "distance":
        cost = error.square() / inverse.diagonal(dim1=1, dim2=2)  # (w_j - q_j)^2 / [H^-1]_jj
    else:
        cost = -weight.abs()
    j = cost.masked_fill_(frozen, torch.inf).argmin(1)  # (rows,)
    inverse_row = inverse[every_row, j]  # [H^-1]_j: (rows, left)
    ratios = inverse_row / inverse_row[every_row, j].unsqueeze(1)  # [H^-1]_j / [H^-1]_jj
    weight.addcmul_(error[every_row, j].unsqueeze(1), ratios, value=-1)
    inverse.baddbmm_(ratios.unsqueeze(2), inverse_row.unsqueeze(1), alpha=-1)
    return j
