"""Least squares with the second moment ``H = X X^T`` of a layer's inputs: damping, the target of
the weights, refitting the free weights, output errors.
"""

import torch
from torch import Tensor

__all__ = ["damped", "least_squares_target", "output_error", "refit"]

# Steps of conjugate gradients: they start from a good guess, and come within a few per cent of the
# least error.
STEPS = 15
TINY = torch.finfo(torch.float32).tiny
LEAST_DAMP = 1e-6  # the first share to try where a hessian needs more damping than was asked for
MARGIN = 1e-9  # share of the damping without which a hessian must still be definite
SAFE_DAMP = 1e-3  # from this share on, no rounding of a sum in float32 makes a hessian indefinite


def least_squares_target(weight: Tensor, hessian: Tensor, drift: Tensor) -> Tensor:
    """Return the weights that give the full-precision outputs best if no codebook binds them,
    float64.

    With ``D`` what the full-precision outputs have beyond ``W X`` because the inputs drifted, these
    are ``W + D X^T H^-1``; without drift they are the weights themselves.

    Args:
        weight: (problems, rows, columns).
        hessian: (problems, columns, columns), positive definite, float64.
        drift: ``D X^T``, the shape of ``weight``: see ``octavo.network.moments.Moments``.

    """
    if not bool(drift.any()):
        return weight.double()
    factor = torch.linalg.cholesky(hessian)
    correction = torch.cholesky_solve(drift.double().mT, factor).mT  # D X^T H^-1
    return weight.double() + correction


def refit(weight: Tensor, target: Tensor, hessian: Tensor, free: Tensor) -> Tensor:
    """Change the free entries of ``weight`` so that ``|(weight - target) X|^2`` comes near its
    least; the other entries keep every bit.

    Conjugate gradients, preconditioned with the diagonal of ``H``, work on all rows at once. Each
    row has other entries free, so a direct solution would need a factorization for each row.

    Args:
        weight: (problems, rows, columns).
        target: the weights that would be best without a codebook, same shape.
        hessian: (problems, columns, columns), positive definite.
        free: bool, same shape as ``weight``.

    """
    diagonal = hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)  # H_jj: (problems, 1, columns)
    # The residual is the negative gradient of half the error, r = (target - weight) H, where free.
    residual = ((target - weight) @ hessian).mul_(free)  # (problems, rows, columns)
    preconditioned = residual / diagonal  # z
    direction = preconditioned  # p
    product = _row_product(residual, preconditioned)  # r z: (problems, rows, 1)
    if not bool(product.any()):  # as without drift, where the weights are the target
        return weight
    for _ in range(STEPS):
        bent = (direction @ hessian).mul_(free)  # p H, where free
        step = product / _row_product(direction, bent).clamp(min=TINY)  # r z / p H p
        weight = weight + step * direction
        residual = residual - step * bent
        preconditioned = residual / diagonal
        previous = product
        product = _row_product(residual, preconditioned)
        direction = preconditioned + product / previous.clamp(min=TINY) * direction
    return weight


def _row_product(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner product of each row: (problems, rows, 1)."""
    return (one * other).sum(2, keepdim=True)


def damped(hessian: Tensor, damp: float) -> Tensor:
    """Return ``hessian`` in float64 with ``damp`` times its mean diagonal added to the diagonal, or
    as much more as it takes to make it positive definite.

    An input that was never anything but zero, or that other inputs determine, makes a hessian
    singular; it needs the damping. One that is hardly definite may lose that by rounding as soon as
    its columns are put into another order, so it has to be definite by a margin.
    """
    hessian = hessian.double()
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)  # (problems, 1)
    unit = torch.where(mean > 0, mean, 1)
    while damp < SAFE_DAMP and not _is_definite(_with_added(hessian, (damp - MARGIN) * unit)):
        damp = max(10 * damp, LEAST_DAMP)
    return _with_added(hessian, damp * unit)


def _is_definite(hessian: Tensor) -> bool:
    return not bool(torch.linalg.cholesky_ex(hessian).info.any())


def _with_added(hessian: Tensor, diagonal: Tensor) -> Tensor:
    """Return a copy of ``hessian`` with ``diagonal``, (problems, 1), added to its diagonal."""
    result = hessian.clone()
    result.diagonal(dim1=1, dim2=2).add_(diagonal)
    return result


def output_error(error: Tensor, hessian: Tensor) -> Tensor:
    """Return ``|error @ X|^2 = error H error^T`` of each row: (problems, rows)."""
    return ((error @ hessian) * error).sum(-1)
