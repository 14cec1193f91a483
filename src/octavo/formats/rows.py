"""A tensor as rows that have one exponent each, and back.

One exponent serves the whole tensor, an output channel, or a group of its inputs. The inputs of a
channel are its weights in the order of memory, so for a convolution input channels first, then the
kernel. A group is so many inputs in a row; the last group of a channel may be shorter, and is
filled up with zeros here.
"""

import torch
from torch import Tensor

from octavo.errors import PlanError

__all__ = ["check_exponent", "from_rows", "group_count", "rows_by_exponent", "spread"]


def check_exponent(max_exponent: Tensor, group_size: int) -> None:
    """Raise PlanError unless ``max_exponent`` is an integer scalar or vector, or a matrix if there
    are groups.
    """
    dims = {2} if group_size else {0, 1}
    if max_exponent.dim() not in dims or max_exponent.is_floating_point():
        expected = "matrix, because there are groups" if group_size else "scalar or vector"
        raise PlanError(
            f"max_exponent: expected an integer {expected}, "
            f"got {max_exponent.dtype} {tuple(max_exponent.shape)}"
        )


def group_count(columns: int, group_size: int) -> int:
    """Count the groups of a channel that has so many weights."""
    return max(1, -(-columns // group_size))


def rows_by_exponent(tensor: Tensor, max_exponent: Tensor, group_size: int = 0) -> Tensor:
    """Return ``tensor`` as a contiguous matrix with a row for each exponent; floats become float32.

    Args:
        tensor: weights or codes, output channels first.
        max_exponent: a scalar, one value per channel, or (channels, groups).
        group_size: the inputs that share an exponent; 0 if there are no groups.

    Raises:
        PlanError: the tensor has another number of output channels, or of groups, than there are
            exponents.

    """
    if max_exponent.dim() and (not tensor.dim() or tensor.shape[0] != len(max_exponent)):
        raise PlanError(
            f"expected a tensor of {len(max_exponent)} output channels, "
            f"got shape {tuple(tensor.shape)}"
        )
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    matrix = as_matrix(tensor, len(max_exponent) if max_exponent.dim() else 1)
    if not group_size:
        return matrix.contiguous()
    if group_count(matrix.shape[1], group_size) != max_exponent.shape[1]:
        raise PlanError(
            f"expected {max_exponent.shape[1]} groups of {group_size} inputs for each output "
            f"channel, got {matrix.shape[1]} inputs"
        )
    return in_groups(matrix, group_size)


def in_groups(matrix: Tensor, group_size: int) -> Tensor:
    """Cut each row into groups, (rows * groups, inputs of a group); zeros fill up the last one."""
    rows, columns = matrix.shape
    count = group_count(columns, group_size)
    size = min(group_size, columns)
    padded = torch.constant_pad_nd(matrix, (0, count * size - columns))
    return padded.reshape(rows * count, size)


def from_rows(rows: Tensor, shape: torch.Size, group_size: int = 0) -> Tensor:
    """Undo :func:`rows_by_exponent` for a tensor of this shape."""
    if not group_size:
        return rows.view(shape)
    columns = shape.numel() // max(1, shape[0])
    return rows.view(shape[0], -1)[:, :columns].reshape(shape)


def spread(values: Tensor, shape: torch.Size, group_size: int = 0) -> Tensor:
    """Return one value for each exponent in a shape that broadcasts to weights of this shape,
    output channels first. With groups, it has a value for each weight.
    """
    if not group_size:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    columns = shape.numel() // shape[0]
    return values.repeat_interleave(min(group_size, columns), 1)[:, :columns].reshape(shape)


def as_matrix(tensor: Tensor, rows: int) -> Tensor:
    """Return ``tensor`` as a matrix of so many rows. (With no rows at all, reshape cannot tell the
    number of columns.)
    """
    return tensor.reshape(rows, tensor.numel() // max(1, rows))
