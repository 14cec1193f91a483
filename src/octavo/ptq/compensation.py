"""Freeze the weights of a layer one after another, while the weights that are still free
compensate for what freezing changes.

A layer computes ``W X``; ``H = X X^T`` is the second moment of its inputs. Everything here works on
many independent problems of one size at once: ``weight`` has the shape (problems, rows, columns),
``hessian`` (problems, columns, columns).
"""

import functools

from torch import Tensor

from octavo.ptq.assignment import Assignment
from octavo.ptq.gptq import gptq
from octavo.ptq.obq import obq
from octavo.ptq.pruned_rows import compensate_kept
from octavo.ptq.rounding import Rounding
from octavo.ptq.settings import PtqOrder, check_ptq_order

__all__ = ["compensate"]


def compensate(
    weight: Tensor,
    hessian: Tensor,
    rounding: Rounding,
    order: PtqOrder,
    *,
    kept: Tensor | None = None,
) -> Assignment:
    """Find codes that make ``levels @ X`` close to ``weight @ X``.

    Args:
        weight: (problems, rows, columns).
        hessian: (problems, columns, columns), positive definite: see
            ``octavo.ptq.least_squares.damped``.
        rounding: the levels that each weight may take.
        order: the order in which weights freeze: see ``octavo.ptq.settings.PtqSettings``.
        kept: bool, (problems, rows, columns), false where a weight is pruned; None where none is.
            If ``weight`` has several times as many rows, these are candidates for the same rows.

    Raises:
        PlanError: an unknown order.

    """
    check_ptq_order(order)
    if order == "gptq":
        if kept is not None:
            kept = kept.repeat(1, weight.shape[1] // kept.shape[1], 1)
        return gptq(weight, hessian, rounding, kept)
    method = functools.partial(obq, order=order)
    if kept is None:
        return method(weight, hessian, rounding)
    return compensate_kept(weight, hessian, rounding, kept, method)
