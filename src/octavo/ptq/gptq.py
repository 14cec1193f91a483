"""Freezing in closed form: each weight that is frozen is made up for by the weights that are still
free.

One layer computes ``W X``. With the second moment ``H = X X^T`` of its inputs, freezing ``w_j`` at
the level ``q`` and adding ``-(w_j - q) / [H^-1]_jj * [H^-1]_j`` to the free weights of its row is
the exact least-squares make-up (Optimal Brain Surgeon;
quantized: OBQ, arXiv 2208.11580, and GPTQ, arXiv 2210.17323). Everything here is for many
    independent problems of one size at
once: ``weight`` has the shape (problems, rows, columns), ``hessian`` (problems, columns, columns).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import edges
from octavo.ptq.least_squares import output_error

__all__ = ["PtqOrder", "check_ptq_order", "compensate"]

PtqOrder = Literal["gptq", "distance", "magnitude", "random"]

BLOCK = 64  # columns that are frozen before the columns beyond are touched
CHUNK = (
    1 << 21
    # numbers in the inverses that are worked on at once where each row has its own: they stay in the
    # caches
)


def compensate(
    weight: Tensor,
    hessian: Tensor,
    levels: Tensor,
    order: PtqOrder,
    *,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes that make ``levels[codes] @ X`` close to ``weight @ X``, and how far off each row is,
    outputs and weights.

    ``gptq`` freezes the columns of all rows in one order, largest ``H_jj`` first, ``random`` in a
    random one. In the others each row has its own order: ``distance`` freezes the weight next that
    costs least, ``(w - q)^2 / [H^-1]_jj`` (OBQ; DNQ's criterion, weighted), ``magnitude`` the
    largest (INQ's).

    Args:
        weight: (problems, rows, columns).
        hessian: (problems, columns, columns), positive definite: see :func:`damped`.
        levels: the levels that each weight may take, ascending.
        order: which weights freeze first.
        kept: bool, (problems, rows, columns); where it is false, the weights are zero and frozen
            before all others. Several rows of ``weight`` may share one: those of one place in
            ``weight`` seen as (problems, any, rows, columns).

    Returns:
        The codes, uint8, shape of ``weight``; ``|error @ X|^2`` by the hessian and ``|error|^2``,
        float64, (problems, rows).

    """
    check_ptq_order(order)
    if kept is not None:
        return _only_kept(weight, hessian, levels, order, kept)
    if order in ("distance", "magnitude"):
        codes = _each_row_in_its_order(weight, hessian, levels, order)
        errors = (weight - levels[codes.int()]).double()
        return codes, output_error(errors, hessian.double()), errors.square().sum(2)
    columns = hessian.diagonal(dim1=1, dim2=2).argsort(descending=True, stable=True)
    if order == "random":
        shuffled = torch.randperm(columns.shape[1], generator=torch.Generator().manual_seed(0))
        columns = shuffled.to(columns.device).expand_as(columns)
    return _all_rows_in_one_order(weight, hessian, levels, columns)


def check_ptq_order(order: str) -> None:
    """Raise PlanError unless ``order`` is known."""
    if order not in get_args(PtqOrder):
        raise PlanError(f"order: expected one of {', '.join(get_args(PtqOrder))}, got {order!r}")


def _only_kept(
    weight: Tensor, hessian: Tensor, levels: Tensor, order: PtqOrder, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row is a problem of its own: as many columns as the fullest row keeps, places to spare
    that no other depends on.
    """
    problems, rows, columns = kept.shape
    width = max(1, int(kept.sum(2).max()))
    places = kept.byte().argsort(dim=2, descending=True, stable=True)[:, :, :width].flatten(0, 1)
    used = kept.flatten(0, 1).gather(1, places)
    sharing = (
        weight.view(problems, -1, rows, columns).transpose(1, 2).flatten(0, 1)
    )  # (problems x rows, sharing, columns)
    problem = torch.arange(problems, device=weight.device).repeat_interleave(rows)
    zero = len(levels) // 2
    codes = torch.full_like(sharing, zero, dtype=torch.uint8)
    errors = torch.zeros(2, *sharing.shape[:2], dtype=torch.float64, device=weight.device)
    for some in torch.arange(len(sharing), device=weight.device).split(max(1, CHUNK // width**2)):
        both = used[some].unsqueeze(1) & used[some].unsqueeze(2)
        own = (
            hessian[
                problem[some].view(-1, 1, 1), places[some].unsqueeze(2), places[some].unsqueeze(1)
            ]
            * both
        )
        own.diagonal(dim1=1, dim2=2)[~used[some]] = 1
        place = places[some].unsqueeze(1).expand(-1, sharing.shape[1], -1)
        values = sharing[some].gather(2, place) * used[some].unsqueeze(1)
        found, *off = compensate(values, own, levels, order)
        codes[some] = codes[some].scatter(2, place, found)
        errors[:, some] = torch.stack(off)
    back = (problems, rows, -1, columns)
    codes, errors = codes.view(back).transpose(1, 2), errors.view(2, *back[:3]).transpose(2, 3)
    return codes.reshape(weight.shape), *errors.reshape(2, *weight.shape[:2])


def _all_rows_in_one_order(
    weight: Tensor, hessian: Tensor, levels: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """GPTQ's steps without the inverse that it starts from.

    With ``H = M M^T``, M upper triangular, ``|e X|^2`` is the sum of the squares of ``e M``; so
    each weight makes up for all that froze before it by ``sum_k e_k M_ki / M_ii`` (Babai's nearest
    plane: the same codes, see arXiv 2507.18553). Then it is off by ``(e M)_i / M_ii``, so the error
        of the outputs falls off on the way.
    """
    levels, width = levels.to(weight.dtype), weight.shape[2]
    between = edges(levels)
    factor = _factor(hessian, columns)
    pull = (
        (factor / factor.diagonal(dim1=1, dim2=2).unsqueeze(1))
        .to(weight.dtype)
        .permute(1, 2, 0)
        .contiguous()
    )
    errors = (
        weight.gather(2, columns.unsqueeze(1).expand_as(weight)).permute(2, 0, 1).contiguous()
    )  # (columns, problems, rows)
    free, taken = errors.clone(), torch.empty_like(errors)
    codes = torch.empty(errors.shape, dtype=torch.int64, device=weight.device)
    steps = list(zip(free, codes, taken, errors, pull.unsqueeze(3), strict=True))
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        for i, (value, code, level, error, row) in enumerate(steps[start:end], start):
            torch.bucketize(value, between, right=True, out=code)
            torch.take(levels, code, out=level)
            error.sub_(level)
            free[i + 1 : end].addcmul_(row[i + 1 : end], error)
        free[end:] += torch.einsum("icp,ipr->cpr", pull[start:end, end:], errors[start:end])
    result = torch.empty_like(weight, dtype=torch.uint8)
    result.scatter_(
        2, columns.unsqueeze(1).expand_as(weight), codes.permute(1, 2, 0).to(torch.uint8)
    )
    outputs = free.sub_(taken) * factor.diagonal(dim1=1, dim2=2).to(weight.dtype).T.unsqueeze(2)
    of_outputs, of_weights = (
        off.square_().sum(0, dtype=torch.float64) for off in (outputs, errors)
    )
    return result, of_outputs, of_weights


def _factor(hessian: Tensor, columns: Tensor) -> Tensor:
    """The upper triangular M with ``M M^T = H``, rows and columns of H taken in the order of
    ``columns``.
    """
    back = columns.flip(1)
    turned = hessian.gather(1, back.unsqueeze(2).expand_as(hessian)).gather(
        2, back.unsqueeze(1).expand_as(hessian)
    )
    factor: Tensor = torch.linalg.cholesky(turned).flip(1, 2)
    return factor


def _each_row_in_its_order(
    weight: Tensor, hessian: Tensor, levels: Tensor, order: PtqOrder
) -> Tensor:
    """OBQ: every row has an inverse of its own, of the weights that it has left."""
    problems, rows, columns = weight.shape
    inverse = torch.linalg.inv(hessian.double()).to(weight.dtype)
    problem = torch.arange(problems, device=weight.device).repeat_interleave(rows)
    flat = weight.reshape(-1, columns)
    chunks = torch.arange(len(flat), device=weight.device).split(max(1, CHUNK // columns**2))
    codes = [
        _rows_in_their_order(flat[some].clone(), inverse[problem[some]], levels, order)
        for some in chunks
    ]
    return torch.cat(codes).view(weight.shape)


def _rows_in_their_order(
    weight: Tensor, inverse: Tensor, levels: Tensor, order: PtqOrder
) -> Tensor:
    """Both arguments are used up. Whenever a quarter of the weights has been frozen, only what the
    others need is kept.
    """
    row = torch.arange(len(weight), device=weight.device)
    free = torch.arange(weight.shape[1], device=weight.device).expand_as(
        weight
    )  # each row's columns that are left
    between, result = edges(levels), torch.zeros_like(weight, dtype=torch.int64)
    while free.shape[1]:
        frozen = torch.zeros_like(weight, dtype=torch.bool)
        for _ in range(math.ceil(free.shape[1] / 4)):
            codes = torch.bucketize(weight, between, right=True)
            error = weight - levels[codes]
            cost = (
                error.square() / inverse.diagonal(dim1=1, dim2=2)
                if order == "distance"
                else -weight.abs()
            )
            j = cost.masked_fill_(frozen, torch.inf).argmin(1)
            frozen[row, j], result[row, free[row, j]] = True, codes[row, j]
            pull = inverse[row, j]
            unit = pull / pull[row, j].unsqueeze(1)
            weight.addcmul_(error[row, j].unsqueeze(1), unit, value=-1)
            inverse.baddbmm_(unit.unsqueeze(2), pull.unsqueeze(1), alpha=-1)
        kept = (~frozen).nonzero()[:, 1].view(len(weight), -1)
        free, weight = free.gather(1, kept), weight.gather(1, kept)
        inverse = inverse[row.view(-1, 1, 1), kept.unsqueeze(2), kept.unsqueeze(1)]
    return result.to(torch.uint8)
