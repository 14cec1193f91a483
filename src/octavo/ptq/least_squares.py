"""Least squares with the second moments of a layer's inputs: damping, targets, refitting, output
errors.
"""

import torch
from torch import Tensor

__all__ = ["damped", "least_squares_target", "output_error", "refit"]

# of conjugate gradients: they start from a good guess, and come within a few per cent of the least
# error
STEPS = 15
TINY = torch.finfo(torch.float32).tiny
LEAST_DAMP, SAFE_DAMP = (
    1e-6,
    1e-3,
)  # from the latter on, no rounding of a sum in float32 makes a hessian indefinite


def least_squares_target(weight: Tensor, hessian: Tensor, drift: Tensor) -> Tensor:
    """What the weights should be if no grid bound them: the same, and what makes up for the drift
    of their inputs.

    Args:
        weight: (problems, rows, columns).
        hessian: (problems, columns, columns), positive definite, float64.
        drift: ``D X^T``, shape of ``weight``: see ``octavo.network.moments.Moments``.

    """
    if not bool(drift.any()):
        return weight.double()
    return (
        weight.double() + torch.cholesky_solve(drift.double().mT, torch.linalg.cholesky(hessian)).mT
    )


def refit(weight: Tensor, target: Tensor, hessian: Tensor, free: Tensor) -> Tensor:
    """``weight`` with its free entries changed so that ``|(weight - target) X|^2`` nears its least.

    By conjugate gradients, all rows at once: each row has other entries free, so a factorization
    would be needed for each.

    Args:
        weight: (problems, rows, columns).
        target: what it should be, same shape.
        hessian: (problems, columns, columns), positive definite.
        free: bool, shape of ``weight``.

    """
    diagonal = hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)
    slope = ((target - weight) @ hessian).mul_(free)
    preconditioned = slope / diagonal
    direction, decrease = preconditioned, (slope * preconditioned).sum(2, keepdim=True)
    for _ in range(STEPS):
        bend = (direction @ hessian).mul_(free)
        step = decrease / (direction * bend).sum(2, keepdim=True).clamp(min=TINY)
        weight, slope = weight + step * direction, slope - step * bend
        preconditioned = slope / diagonal
        before, decrease = decrease, (slope * preconditioned).sum(2, keepdim=True)
        direction = preconditioned + decrease / before.clamp(min=TINY) * direction
    return weight


def damped(hessian: Tensor, damp: float) -> Tensor:
    """``hessian`` in float64 with ``damp`` times its mean diagonal added to the diagonal, or as
    much more as it needs.

    An input that never was anything but zero, or that others determine, makes a hessian singular;
    it needs the damping.
    """
    hessian = hessian.double()
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    unit = torch.where(mean > 0, mean, 1)
    while damp < SAFE_DAMP and bool(
        torch.linalg.cholesky_ex(_raised(hessian, damp * unit)).info.any()
    ):
        damp = max(10 * damp, LEAST_DAMP)
    return _raised(hessian, damp * unit)


def _raised(hessian: Tensor, diagonal: Tensor) -> Tensor:
    raised = hessian.clone()
    raised.diagonal(dim1=1, dim2=2).add_(diagonal)
    return raised


def output_error(error: Tensor, hessian: Tensor) -> Tensor:
    """``|error @ X|^2`` of each row: (problems, rows)."""
    return ((error @ hessian) * error).sum(-1)
