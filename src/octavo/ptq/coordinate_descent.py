"""Coordinate descent on codes: one column after another takes its best levels, while all others
keep theirs.

Let ``e = w - q`` be the errors of a row. With all other columns as they are, the squared error
``e H e^T`` of the outputs is least if ``q_j`` is the level nearest to ``q_j + (e H)_j / H_jj``. So
no step makes the error larger. A round through all columns costs about as much as GPTQ.

GPTQ decides each weight on the premise that the columns behind it compensate. Where some of these
are pruned in some rows, they cannot; a round of descent repairs this.
"""

import torch
from torch import Tensor

from octavo.ptq.assignment import Assignment
from octavo.ptq.rounding import Rounding

__all__ = ["descended"]

BLOCK = 64  # columns that are changed before the columns beyond them are updated


def descended(
    codes: Tensor,
    weight: Tensor,
    hessian: Tensor,
    rounding: Rounding,
    free: Tensor,
    columns: Tensor,
) -> Assignment:
    """Change each code once, one column at a time, where that lowers the squared error of the
    outputs.

    Args:
        codes: the codes to start from, uint8, (problems, rows, columns).
        weight: the same shape.
        hessian: ``X X^T`` of each problem, (problems, columns, columns), positive definite.
        rounding: the levels that each weight may take.
        free: bool, false for codes that stay, the shape of ``weight``.
        columns: the order of the columns, (problems, columns).

    """
    index = columns.unsqueeze(1).expand_as(weight)  # (problems, rows, columns)
    roundings = rounding.to(weight.dtype).by_column(index)
    moment = hessian.to(weight.dtype)
    moment = moment.gather(1, columns.unsqueeze(2).expand_as(moment))
    moment = moment.gather(2, columns.unsqueeze(1).expand_as(moment))
    # Columns come first from here on, so that a block of them is one piece of memory.
    moment = moment.permute(1, 2, 0).contiguous()  # H: (k, i, problems)
    ordered = weight.gather(2, index).permute(2, 0, 1).contiguous()  # (columns, problems, rows)
    changed = codes.gather(2, index).permute(2, 0, 1).long().contiguous()
    _descend(changed, ordered, moment, roundings, free.gather(2, index).permute(2, 0, 1))

    errors = ordered - _levels(roundings, changed)
    output_errors = errors * torch.einsum("kip,kpr->ipr", moment, errors)
    return Assignment(
        codes.scatter(2, index, changed.permute(1, 2, 0).to(torch.uint8)),
        output_errors.sum(0, dtype=torch.float64).clamp_(min=0),
        errors.square_().sum(0, dtype=torch.float64),
    )


def _descend(
    codes: Tensor, weight: Tensor, moment: Tensor, roundings: list[Rounding], free: Tensor
) -> None:
    """Let each column take its best levels; ``codes``, (columns, problems, rows), change in
    place.
    """
    chosen = _levels(roundings, codes)  # q
    bent = torch.einsum("kip,kpr->ipr", moment, weight - chosen)  # e H
    diagonal = moment.diagonal().T.unsqueeze(2)  # H_jj: (columns, problems, 1)
    for start in range(0, len(weight), BLOCK):
        end = min(start + BLOCK, len(weight))
        before = chosen[start:end].clone()
        for j in range(start, end):
            best = roundings[j](chosen[j] + bent[j] / diagonal[j], diagonal[j])
            codes[j] = torch.where(free[j], best, codes[j])
            lowered = chosen[j] - roundings[j].level(codes[j])  # e_j rises by as much
            chosen[j] -= lowered
            bent[j + 1 : end].addcmul_(moment[j, j + 1 : end].unsqueeze(2), lowered)
        # The columns beyond the block: the same sum for all columns of the block at once.
        lowered_here = before - chosen[start:end]
        bent[end:] += torch.einsum("kip,kpr->ipr", moment[start:end, end:], lowered_here)


def _levels(roundings: list[Rounding], codes: Tensor) -> Tensor:
    """Return the levels of codes, (columns, problems, rows)."""
    each = zip(roundings, codes, strict=True)
    return torch.stack([rounding.level(column) for rounding, column in each])
