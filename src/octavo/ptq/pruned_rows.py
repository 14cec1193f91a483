"""Rows with pruned weights: these are zero and frozen before all others, so that only the weights
that were kept compensate.

Each row has lost other columns, so each row becomes a problem of its own, of the columns that it
kept. All rows get as many slots as the fullest row has kept weights. A row fills the slots that it
does not need with columns that depend on no other: their weights are zero, and their hessian is
that of the identity.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ptq.assignment import Assignment
from octavo.ptq.rounding import Rounding

__all__ = ["compensate_kept"]

CHUNK = 1 << 21  # numbers in the rows' hessians that are worked on at once

Method = Callable[[Tensor, Tensor, Rounding], Assignment]  # takes weight, hessian and rounding


def compensate_kept(
    weight: Tensor, hessian: Tensor, rounding: Rounding, kept: Tensor, method: Method
) -> Assignment:
    """Find codes that make ``levels @ X`` close to ``weight @ X``, zero where a weight is
    pruned.

    Args:
        weight: (problems, sharing * rows, columns), zero where it is pruned. Several rows share a
            row of ``kept`` if they are candidates for one row of the layer: ``weight`` is seen as
            (problems, sharing, rows, columns).
        hessian: (problems, columns, columns), positive definite.
        rounding: the levels that each weight may take; the middle one is zero.
        kept: bool, (problems, rows, columns), false where a weight is pruned.
        method: freezes the weights of problems in which nothing is pruned.

    """
    problems, rows, columns = kept.shape
    slots = _Slots.of(kept)
    by_row = _by_row(weight, kept)  # (problems * rows, sharing, columns)
    rounding = rounding.mapped(lambda one: _by_row(one, kept))
    codes = torch.full_like(by_row, rounding.zero, dtype=torch.uint8)
    errors = torch.zeros(2, *by_row.shape[:2], dtype=torch.float64, device=weight.device)
    rows_at_once = max(1, CHUNK // slots.columns.shape[1] ** 2)
    for chunk in torch.arange(len(by_row), device=weight.device).split(rows_at_once):
        columns_of_row = slots.columns[chunk].unsqueeze(1).expand(-1, by_row.shape[1], -1)
        needed = slots.used[chunk].unsqueeze(1)  # (chunk, 1, slots)
        kept_weights = by_row[chunk].gather(2, columns_of_row) * needed
        of_chunk = rounding.mapped(operator.itemgetter(chunk)).picked(columns_of_row)
        assignment = method(kept_weights, slots.hessians(hessian, chunk), of_chunk)
        codes[chunk] = codes[chunk].scatter(2, columns_of_row, assignment.codes)
        errors[:, chunk] = torch.stack([assignment.output_error, assignment.weight_error])
    # Back to (problems, sharing * rows, columns).
    codes = codes.view(problems, rows, -1, columns).transpose(1, 2)
    errors = errors.view(2, problems, rows, -1).transpose(2, 3)
    output_error, weight_error = errors.reshape(2, *weight.shape[:2])
    return Assignment(codes.reshape(weight.shape), output_error, weight_error)


def _by_row(weight: Tensor, kept: Tensor) -> Tensor:
    """Return (problems, sharing * rows, columns) as (problems * rows, sharing, columns)."""
    problems, rows, _ = kept.shape
    by_sharing = weight.reshape(problems, -1, rows, weight.shape[2])  # sharing comes second
    return by_sharing.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class _Slots:
    """The columns that each row's own problem is made of; rows of all problems in turn.

    Attributes:
        columns: the column in each slot, kept ones first, (problems * rows, slots).
        used: true if the row has kept the column that is in a slot, same shape.
        problem: the problem that each row belongs to, (problems * rows,).

    """

    columns: Tensor
    used: Tensor
    problem: Tensor

    @classmethod
    def of(cls, kept: Tensor) -> "_Slots":
        problems, rows, _ = kept.shape
        most = max(1, int(kept.sum(2).max()))  # kept weights of the fullest row
        kept_first = kept.byte().argsort(dim=2, descending=True, stable=True)
        columns = kept_first[:, :, :most].flatten(0, 1)
        used = kept.flatten(0, 1).gather(1, columns)
        problem = torch.arange(problems, device=kept.device).repeat_interleave(rows)
        return cls(columns, used, problem)

    def hessians(self, hessian: Tensor, chunk: Tensor) -> Tensor:
        """Return the hessians of the problems of a chunk of rows, (chunk, slots, slots): the
        identity in slots that a row does not use.
        """
        problem = self.problem[chunk].view(-1, 1, 1)
        columns = self.columns[chunk]
        used = self.used[chunk]
        both_used = used.unsqueeze(1) & used.unsqueeze(2)
        picked = hessian[problem, columns.unsqueeze(2), columns.unsqueeze(1)] * both_used
        picked.diagonal(dim1=1, dim2=2)[~used] = 1
        return picked
