"""GPTQ (arXiv 2210.17323): the columns of a layer freeze one after another, in one order for all
its rows.

When a column freezes at its nearest levels, the columns that are still free are updated, so that
the outputs stay as near as they can be. GPTQ takes the factors of the update from the Cholesky
factor ``U`` of the inverse, ``H^-1 = U^T U``. This module takes them from ``M = U^-1``, which is
the factor of ``H`` itself: ``H = M M^T``, upper triangular, and nothing is inverted.

Let ``w`` be a row's weights before anything froze, ``q`` their levels and ``e = w - q``. GPTQ
subtracts ``(w'_k - q_k) / U_kk * U_ki`` from column ``i`` for each column ``k`` that froze before
it. The sum of these updates is the same as adding ``e_k M_ki / M_ii`` for each, which is Babai's
nearest plane (arXiv 2507.18553)::

    w'_i = w_i + sum_{k < i} e_k M_ki / M_ii
    q_i  = the level nearest to w'_i

The outputs' squared error comes along for free: ``|e X|^2 = |e M|^2``, and
``(e M)_i = (w'_i - q_i) M_ii``.

A pruned weight stays zero. Columns that are pruned in every row come first in the order, so that
the others are solved as if these did not exist. Where rows have lost different columns, the rows
are still solved together, and coordinate descent (``octavo.ptq.coordinate_descent``) follows for
those that have lost some: an inverse for each row would cost as much as a layer.
"""

import torch
from torch import Tensor

from octavo.ptq.assignment import Assignment
from octavo.ptq.coordinate_descent import descended
from octavo.ptq.rounding import Rounding

__all__ = ["column_order", "curvature", "gptq"]

BLOCK = 64  # columns that freeze before the columns beyond them are updated


def gptq(
    weight: Tensor, hessian: Tensor, rounding: Rounding, kept: Tensor | None = None
) -> Assignment:
    """Find codes that make ``levels @ X`` close to ``weight @ X``, by GPTQ.

    Args:
        weight: (problems, rows, columns), zero where it is pruned.
        hessian: ``X X^T`` of each problem, (problems, columns, columns), positive definite.
        rounding: the levels that each weight may take; if weights are pruned, the middle one is
            zero.
        kept: bool, false where a weight is pruned, the shape of ``weight``; None where none is.

    """
    columns = column_order(hessian)  # (problems, columns)
    if kept is not None:
        used = kept.any(1).gather(1, columns).byte()  # (problems, columns)
        columns = columns.gather(1, used.argsort(dim=1, stable=True))  # the unused ones first
    assignment = _in_order(weight, hessian, rounding, columns, kept)
    if kept is None:
        return assignment
    return _with_descent(assignment, weight, hessian, rounding, columns, kept)


def column_order(hessian: Tensor) -> Tensor:
    """Return the columns of each problem, largest ``H_jj`` first: (problems, columns)."""
    return hessian.diagonal(dim1=1, dim2=2).argsort(descending=True, stable=True)


def curvature(hessian: Tensor) -> Tensor:
    """Return ``M_ii^2``, what a squared error of each column costs the outputs while the columns
    behind it compensate: (problems, columns).
    """
    columns = column_order(hessian)
    diagonal = _upper_factor(hessian, columns).diagonal(dim1=1, dim2=2)
    return torch.empty_like(diagonal).scatter_(1, columns, diagonal.square())


def _in_order(
    weight: Tensor, hessian: Tensor, rounding: Rounding, columns: Tensor, kept: Tensor | None
) -> Assignment:
    """Freeze the columns in an order, (problems, columns)."""
    factor = _upper_factor(hessian, columns)  # M: (problems, columns, columns)
    diagonal = factor.diagonal(dim1=1, dim2=2)  # M_ii: (problems, columns)
    ratios = (factor / diagonal.unsqueeze(1)).to(weight.dtype)  # M_ki / M_ii

    # Columns come first from here on, so that the part that is still free is one piece of memory.
    ratios = ratios.permute(1, 2, 0).contiguous()  # (k, i, problems)
    index = columns.unsqueeze(1).expand_as(weight)  # (problems, rows, columns)
    ordered = weight.gather(2, index).permute(2, 0, 1).contiguous()  # (columns, problems, rows)
    pruned = None if kept is None else ~kept.gather(2, index).permute(2, 0, 1).contiguous()
    roundings = rounding.to(weight.dtype).by_column(index)
    squares = diagonal.square().T.unsqueeze(2)  # M_ii^2: (columns, problems, 1)
    of_columns = zip(roundings, squares, strict=True)
    codes, updated, errors = _freeze_columns(ordered, ratios, list(of_columns), pruned)

    original_codes = torch.empty_like(weight, dtype=torch.uint8)
    original_codes.scatter_(2, index, codes.permute(1, 2, 0).to(torch.uint8))
    # (e M)_i = (w'_i - q_i) M_ii
    output_errors = updated * diagonal.to(weight.dtype).T.unsqueeze(2)
    return Assignment(
        original_codes,
        output_errors.square_().sum(0, dtype=torch.float64),
        errors.square_().sum(0, dtype=torch.float64),
    )


def _with_descent(
    assignment: Assignment,
    weight: Tensor,
    hessian: Tensor,
    rounding: Rounding,
    columns: Tensor,
    kept: Tensor,
) -> Assignment:
    """Let coordinate descent follow in the rows that have lost other columns than all rows have."""
    used = kept.any(1, keepdim=True)  # (problems, 1, columns): by any row
    uneven = (kept != used).any(2, keepdim=True)  # (problems, rows, 1)
    some = uneven.any(0).flatten().nonzero().flatten()  # rows that are uneven in any problem
    if not len(some):
        return assignment
    codes = assignment.codes
    free = (kept & uneven)[:, some]
    of_some = rounding.at(some)
    better = descended(codes[:, some], weight[:, some], hessian, of_some, free, columns)
    return Assignment(
        codes.index_copy(1, some, better.codes),
        assignment.output_error.index_copy(1, some, better.output_error),
        assignment.weight_error.index_copy(1, some, better.weight_error),
    )


def _freeze_columns(
    weight: Tensor,
    ratios: Tensor,
    roundings: list[tuple[Rounding, Tensor]],
    pruned: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Freeze one column after another, and update those that are still free.

    Args:
        weight: (columns, problems, rows), in the order in which the columns freeze; it is
            overwritten.
        ratios: ``M_ki / M_ii``, (k, i, problems).
        roundings: the levels that the weights of each column may take, and its ``M_ii^2``,
            (problems, 1).
        pruned: bool, true where the middle level, zero, is taken; None where it nowhere is.

    Returns:
        The codes (int64), ``w' - q`` and ``e = w - q``, all in the shape of ``weight``.

    """
    count = len(weight)
    updated = weight.clone()  # w'
    errors = weight  # e; a column that is still free is w
    chosen = torch.empty_like(weight)  # q
    codes = torch.empty(weight.shape, dtype=torch.int64, device=weight.device)
    # Views of each column of w' and the others, made once: indexing them in the loop would cost as
    # much as the arithmetic.
    columns = list(zip(roundings, updated, codes, chosen, errors, ratios.unsqueeze(3), strict=True))
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        for i, (of_column, w, code, q, e, ratio) in enumerate(columns[start:end], start):
            rounding, square = of_column
            rounding(w, square, out=code)
            if pruned is not None:
                code.masked_fill_(pruned[i], rounding.zero)
            rounding.level(code, out=q)  # q_i: the level of w'_i
            e.sub_(q)  # e_i = w_i - q_i
            # w'_j += e_i M_ij / M_jj for the columns j that are left in the block
            updated[i + 1 : end].addcmul_(ratio[i + 1 : end], e)
        # The columns beyond the block: the same sum for all columns of the block at once.
        updated[end:] += torch.einsum("kjp,kpr->jpr", ratios[start:end, end:], errors[start:end])
    return codes, updated.sub_(chosen), errors


def _upper_factor(hessian: Tensor, columns: Tensor) -> Tensor:
    """Return the upper triangular ``M`` with ``M M^T = H``, after the rows and columns of ``H``
    were put into the order of ``columns``.

    Cholesky factors are lower triangular: ``H`` is turned around before and ``M`` after.
    """
    reverse = columns.flip(1)
    rows_turned = hessian.gather(1, reverse.unsqueeze(2).expand_as(hessian))
    turned = rows_turned.gather(2, reverse.unsqueeze(1).expand_as(hessian))
    lower: Tensor = torch.linalg.cholesky(turned)
    return lower.flip(1, 2)
