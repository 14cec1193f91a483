"""Fewer bytes for the tensors that are not quantized: float16, and batch norms without statistics.

In a small network, biases and norms take more of the file than one would think: a sixth in a
ResNet-20 that has most of its weights pruned.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from octavo.network.kinds import NORMS
from octavo.storage.container import Floats
from octavo.storage.manifest import raw_bytes

__all__ = ["folded_norms", "rounded_to_float16"]

NEAR = 1e-3  # the largest share that a number may change by when it is rounded to float16

Names: TypeAlias = tuple[str, ...]  # the names that share a tensor
AFFINE = ("weight", "bias")
RUNNING = ("running_mean", "running_var")


def rounded_to_float16(floats: Floats) -> Floats:
    """Round float32 tensors, such as biases and norms, to float16: half of their bytes.

    A float32 model takes these values exactly. A tensor stays as it is where float16 is off by more
    than a thousandth of its largest number, and so does a scalar, such as the scale of an input.
    """
    return [(names, _rounded(value)) for names, value in floats]


def folded_norms(floats: Floats, model: nn.Module) -> Floats:
    """Fold the running statistics of batch norms into their scales and shifts.

    The means become 0 and the variances 1. They are stored once for all norms of a size, in a byte
    a number, so that a norm takes half of its bytes. In evaluation mode nothing changes but by
    rounding; in training mode, where a norm takes its statistics from the batch, the network is
    another one.

    A norm stays as it is if it has no scale, is not in float32, has a ``forward`` of its own or
    shares a tensor with another module, and if float16 cannot hold the folded scale of every
    channel.

    Args:
        floats: the tensors of the packed network that are not quantized.
        model: a model of the network's architecture; it tells which tensors are a batch norm's.

    """
    names_of = {name: names for names, _ in floats for name in names}
    values = dict(floats)
    statistics: set[Names] = set()
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in model.named_modules():
        rows = [names_of.get(_key(path, key), ()) for key in AFFINE + RUNNING]
        owners = {name.rpartition(".")[0] for names in rows for name in names}
        is_alone = all(modules.get(owner) is module for owner in owners)
        if not (_is_plain_norm(module) and all(rows) and is_alone):
            continue
        folded = _folded(*map(values.__getitem__, rows), eps=module.eps)
        if folded:
            values |= dict(zip(rows, folded, strict=True))
            counter = names_of.get(_key(path, "num_batches_tracked"), ())
            statistics |= {*rows[len(AFFINE) :], counter}
    return _stored_once(values, statistics)


def _key(path: str, name: str) -> str:
    """Return the key of a module's tensor in the state dict."""
    return f"{path}.{name}" if path else name


def _is_plain_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and type(module).forward is NORMS[0].forward


def _folded(
    scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, eps: float
) -> tuple[Tensor, ...]:
    """Return the four tensors of a batch norm that does the same with the mean 0 and the variance
    1; none if they cannot hold it.
    """
    kinds = {(tensor.dtype, tensor.shape) for tensor in (scale, shift, mean, variance)}
    if kinds != {(torch.float32, scale.shape)}:
        return ()
    # y = scale * (x - mean) / sqrt(variance + eps) + shift = factor * x + (shift - mean * factor)
    factor = scale.double() / (variance.double() + eps).sqrt()
    new_scale = (factor * math.sqrt(1 + eps)).float()  # the norm divides by sqrt(1 + eps)
    new_shift = (shift.double() - mean.double() * factor).float()
    # A scale multiplies what may be large, so each must be near in float16, not the largest alone.
    error = (new_scale.half().double() - new_scale).abs()
    if not bool((error <= NEAR * new_scale.abs()).all()):
        return ()
    zeros = torch.zeros_like(mean, dtype=torch.uint8)
    return new_scale, new_shift, zeros, zeros + 1


def _stored_once(values: Mapping[Names, Tensor], alike: Collection[Names]) -> Floats:
    """Return the tensors with one row for all of ``alike`` that are equal."""
    rows: dict[Any, tuple[Names, Tensor]] = {}
    for names, value in values.items():
        key = (value.dtype, value.shape, raw_bytes(value)) if names in alike else names
        others, _ = rows.get(key, ((), value))
        rows[key] = (others + names, value)
    return list(rows.values())


def _rounded(value: Tensor) -> Tensor:
    """Return a float32 tensor in float16, if that is near enough."""
    if value.dtype != torch.float32 or not value.numel() or not value.dim():
        return value
    half = value.half()
    error = (half.float() - value).abs()
    return half if bool((error <= NEAR * value.abs().amax()).all()) else value
