"""The choice of a codebook's exponents for a weight: one function for all codebooks."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from octavo._deprecated import warn_renamed
from octavo.errors import PlanError
from octavo.formats.codebook import LARGEST, SMALLEST, Codebook, blocks
from octavo.formats.rows import as_matrix, group_count, in_groups

__all__ = ["Fit", "Make", "Per", "check_finite", "fitted", "group_size_of", "read_per"]

Fit = Literal["max", "mse"]
# ("group", n): one exponent for every n inputs of an output channel.
Per: TypeAlias = Literal["tensor", "channel"] | tuple[Literal["group"], int]

Make: TypeAlias = Callable[[Tensor, int], Codebook]  # from max_exponent and group_size


def read_per(per: Any, name: str = "weight") -> Per:
    """Return ``per``, checked; the old word ``"layer"`` is read as ``"tensor"``, with a warning.

    Args:
        per: ``"tensor"``, ``"channel"``, or ``("group", n)`` with n of at least 2.
        name: the name of the tensor, for errors.

    Raises:
        PlanError: any other value.

    """
    if per == "layer":
        warn_renamed('per="layer"', 'per="tensor"', stacklevel=4)  # the caller of our caller
        return "tensor"
    if per == "tensor":
        return "tensor"
    if per == "channel":
        return "channel"
    match per:
        case ["group", int(size)] if size >= 2:
            return "group", size
    raise PlanError(
        f'{name}: expected per "tensor" or "channel", got {per!r}; or write ("group", 32), '
        "with any number of at least 2"
    )


def group_size_of(per: Per) -> int:
    """Return the inputs of a channel that share an exponent; 0 if there are no groups."""
    return 0 if isinstance(per, str) else per[1]


def fitted(
    weight: Tensor, make: Make, *, fit: Fit, per: Per, importance: Tensor | None, name: str
) -> Codebook:
    """Return the codebook with the exponents that fit ``weight``.

    ``fit="max"`` is the least exponent within whose ``reach`` all weights are. A row of zeros gets
    the exponent 0. The other arguments and the errors are those of
    ``octavo.formats.powers_of_two.power_of_two``.

    Args:
        weight: floats of any shape, output channels first.
        make: makes the codebook with given exponents.
        fit: ``"max"`` or ``"mse"``.
        per: what shares an exponent.
        importance: weights of the squared errors, broadcastable to ``weight``; None for equal.
        name: the name of the tensor, for errors.

    """
    per = read_per(per, name)
    size = group_size_of(per)
    if fit not in get_args(Fit):
        raise PlanError(f'{name}: expected fit "max" or "mse", got {fit!r}')
    values = weight.detach().float()
    check_finite(values, name)
    if per != "tensor" and not weight.dim():
        raise PlanError(f"{name}: expected a tensor with output channels, got a scalar")
    rows = _rows(values, per)
    any_exponent = torch.zeros((), dtype=torch.int32, device="cpu")
    exponent = _largest_exponent(rows, make(any_exponent, 0))
    if fit == "mse" and rows.numel():
        share = None if importance is None else _rows(importance.expand_as(weight), per)
        exponent = _least_error_exponent(rows, make, exponent, share)
    return make(_by_per(exponent, rows, weight, per), size)


def check_finite(weight: Tensor, name: str) -> None:
    """Raise PlanError if a weight is NaN or infinite."""
    # The extremes are finite if all are, because one NaN makes both NaN; they take no memory.
    if weight.numel() and not all(bool(one.isfinite()) for one in weight.aminmax()):
        bad = int((~weight.isfinite()).sum())
        raise PlanError(
            f"{name}: expected finite weights, "
            f"got {bad} of {weight.numel()} that are NaN or infinite"
        )


def _rows(values: Tensor, per: Per) -> Tensor:
    """Return a matrix with a row for each exponent to be chosen."""
    if per == "tensor":
        return as_matrix(values, 1)
    matrix = as_matrix(values, values.shape[0])
    return matrix if per == "channel" else in_groups(matrix, group_size_of(per))


def _by_per(exponent: Tensor, rows: Tensor, weight: Tensor, per: Per) -> Tensor:
    """Return the exponents of all rows in the shape of a codebook's ``max_exponent``. A group of
    zeros, to which any will do, gets the largest of its channel, which a file stores for nothing.
    """
    if per == "tensor":
        return exponent[0]
    if per == "channel":
        return exponent
    channels = weight.shape[0]
    columns = weight.numel() // max(1, channels)
    by_channel = exponent.view(channels, group_count(columns, group_size_of(per)))
    is_zero = ~rows.any(1).view(by_channel.shape)
    largest = by_channel.masked_fill(is_zero, SMALLEST).amax(1, keepdim=True)
    largest = torch.where(is_zero.all(1, keepdim=True), 0, largest)
    return torch.where(is_zero, largest, by_channel)


def _largest_exponent(rows: Tensor, unit: Codebook) -> Tensor:
    """Return the least exponent of each row whose reach no weight exceeds, int32.

    A larger exponent gains no level within reach of the weights. For powers of two, this is INQ's
    ``n1 = floor(log2(4/3 max|w|))``.
    """
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
    mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2^exponent, 1/2 <= mantissa
    least = exponent - (2 * mantissa <= unit.reach.fitted).int()
    within = least.clamp(unit.lowest_max_exponent, LARGEST)
    return torch.where(largest > 0, within, 0).to(torch.int32)


def _least_error_exponent(
    rows: Tensor, make: Make, start: Tensor, importance: Tensor | None
) -> Tensor:
    """Find the integer exponent of least squared error of each row; of equals, the largest.

    No exponent above ``start`` gains a level. Going down from it, the error of the saturated
    weights, those above the largest level, only grows; so a row is finished when that part alone
    reaches the row's best error.

    Args:
        rows: a row for each exponent.
        make: makes the codebook that has these exponents.
        start: the largest exponent of each row that may be the best.
        importance: the weight of each element's squared error, shape of ``rows``; None for equal.

    """
    exponent = start.clone()
    best_exponent = start.clone()
    codebook = make(exponent, 0)
    best_error, saturated = _squared_error(rows, codebook, importance)
    while True:
        is_open = (saturated < best_error) & (exponent > codebook.lowest_max_exponent)
        left = is_open.nonzero().flatten()
        if not len(left):
            return best_exponent
        exponent[left] -= 1
        share = None if importance is None else importance[left]
        error, saturated[left] = _squared_error(rows[left], make(exponent[left], 0), share)
        best_exponent[left] = torch.where(
            error < best_error[left], exponent[left], best_exponent[left]
        )
        best_error[left] = torch.minimum(error, best_error[left])


def _squared_error(
    rows: Tensor, codebook: Codebook, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of each row, and the part of it that comes from weights above the
    largest level; both float64.
    """
    level = codebook.project(rows)
    largest = codebook.levels()[..., -1:].to(rows.device)  # (rows, 1)
    total, saturated = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    for span, block in blocks(rows):
        weight = rows[block].double()
        share = 1.0 if importance is None else importance[block]
        beyond = weight.abs().sub_(largest[span]).clamp_(min=0)
        saturated[span] += beyond.square_().mul_(share).sum(1)
        total[span] += weight.sub_(level[block]).square_().mul_(share).sum(1)
    return total, saturated
