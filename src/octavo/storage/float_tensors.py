"""What else a packed network can do without: all that is not quantized, in fewer bytes.

In a small network, biases and norms take more of the file than one would think: of a ResNet-20 with
most weights pruned, a sixth.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from octavo.network.kinds import NORMS
from octavo.storage.manifest import raw_bytes
from octavo.storage.packed import Packed

__all__ = ["with_float16", "with_folded_norms"]

NEAR = 1e-3  # what rounding to float16 may change

Names: TypeAlias = tuple[str, ...]  # that share a tensor
AFFINE, RUNNING = ("weight", "bias"), ("running_mean", "running_var")


def with_float16(packed: Packed) -> Packed:
    """The same network with its other float32 tensors, biases and norms, rounded to float16: half
    of their bytes.

    A float32 model takes these values exactly. A tensor stays as it is where float16 is off by more
    than a thousandth of its largest number, and so does a scalar, such as the step of an input.
    """
    return Packed(
        packed.layers,
        [(names, _rounded(value)) for names, value in packed.floats],
        packed.activations,
    )


def with_folded_norms(packed: Packed, model: nn.Module) -> Packed:
    """The same network with the running statistics of its batch norms folded into their scales and
    shifts.

    The means become 0 and the variances 1, stored once for all norms of a size and in a byte a
    number: a norm takes half of its bytes. In evaluation mode nothing changes but by rounding; in
        training mode, where a norm takes its statistics from the
    batch, the network is another one.

    A norm stays as it is where that would not do: if it has no scale, is not in float32, has a
    ``forward`` of its own, or shares a tensor with another module, and where float16 does not hold
    the folded scale of every channel.

    Args:
        packed: the network.
        model: of its architecture; it tells which tensors are those of a batch norm.

    """
    names_of = {name: names for names, _ in packed.floats for name in names}
    values, statistics = dict(packed.floats), set[Names]()
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in model.named_modules():
        rows = [names_of.get(f"{path}.{key}".lstrip("."), ()) for key in AFFINE + RUNNING]
        owners = {name.rpartition(".")[0] for names in rows for name in names}
        if not (
            _is_plain_norm(module)
            and all(rows)
            and all(modules.get(owner) is module for owner in owners)
        ):
            continue
        if folded := _folded(*map(values.__getitem__, rows), eps=module.eps):
            values |= dict(zip(rows, folded, strict=True))
            statistics |= {
                *rows[len(AFFINE) :],
                names_of.get(f"{path}.num_batches_tracked".lstrip("."), ()),
            }
    return Packed(packed.layers, _stored_once(values, statistics), packed.activations)


def _is_plain_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and type(module).forward is NORMS[0].forward


def _folded(
    scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, eps: float
) -> tuple[Tensor, ...]:
    """The four tensors of a batch norm that does the same with the mean 0 and the variance 1, if
    they can hold it.
    """
    if {(tensor.dtype, tensor.shape) for tensor in (scale, shift, mean, variance)} != {
        (torch.float32, scale.shape)
    }:
        return ()
    factor = scale.double() / (variance.double() + eps).sqrt()
    new = (factor * math.sqrt(1 + eps)).float()
    off = (
        new.half().double() - new
    ).abs()  # a scale multiplies what may be large: each must be near, not the largest alone
    if not bool((off <= NEAR * new.abs()).all()):
        return ()
    means = torch.zeros(mean.shape, dtype=torch.uint8)
    return new, (shift.double() - mean.double() * factor).float(), means, means + 1


def _stored_once(
    values: Mapping[Names, Tensor], alike: Collection[Names]
) -> list[tuple[Names, Tensor]]:
    """One row for all of ``alike`` that are equal."""
    rows = dict[Any, tuple[Names, Tensor]]()
    for names, value in values.items():
        key = (value.dtype, value.shape, raw_bytes(value)) if names in alike else names
        others, _ = rows.get(key, ((), value))
        rows[key] = others + names, value
    return list(rows.values())


def _rounded(value: Tensor) -> Tensor:
    if value.dtype != torch.float32 or not value.numel() or not value.dim():
        return value
    half = value.half()
    off = (half.float() - value).abs()
    return half if bool((off <= NEAR * value.abs().amax()).all()) else value
