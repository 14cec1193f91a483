"""Hold frozen weights still under any optimizer, and fold the model back to plain modules.

Masking gradients does not hold a weight: momentum and weight decay still move it. Here each
quantized parameter gets a
parametrization: the forward pass sees the frozen value where a weight is frozen and the trained one
    elsewhere.

Free weights are bounded too. Left alone, the last few of them grow far beyond the largest level
while they make up for all the others, and rounding them in the end undoes the network. So the
network sees them within a bound that closes, as the free share falls, on the range that the
codebook divides: up to the outer edge of its largest level's cell. The paper bounds nothing; with
its own ``n1``, every weight starts inside of that range.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.formats.codebook import Codebook
from octavo.formats.registry import codebook_at
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.network.parametrizations import attach

__all__ = ["FrozenWeights", "Masks", "hold"]

# how far beyond the outer edge of the largest level's cell the bound lies, times the free share
ROOM = 3.0
BITS = {
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # integers as wide as a float of so many bytes
ONE, MANTISSA = 127, 23  # of float32's bits: the exponent field of 1, how far up it lies
FREE = -128  # the mark of a weight that is free: the least int8
LEVEL = ~(1 << 30)  # of float32's bits: those that a mark may set


class Masks(Mapping[str, Tensor]):
    """Masks by layer name, each made when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class FrozenWeights(nn.Module):
    """A parametrization that replaces the frozen weights by their levels.

    It keeps one byte a weight, and its output four while a graph is alive: 5 bytes of extra memory
    a weight. The byte marks a weight as free, or has the sign and the exponent field of its level
    for n1 = 0: shifted up, these are the level's own bits. On another grid than powers of two it
    has the level's place from zero, to be looked up.
    """

    pruned: int  # how many weights were frozen at zero before any other
    straight_through: bool  # whether the network sees free weights at their levels too
    marks: Tensor  # int8, the weight's own shape
    scale: Tensor  # 2^n1, broadcastable to the weight
    # the bound of free weights in units of the scale; infinite until the first weight is frozen
    edge: Tensor
    table: Tensor | None  # by mark, from FREE on, the level for n1 = 0; None where the mark has it

    def __init__(self, weight: Tensor, codebook: Codebook, groups: int = 0) -> None:
        super().__init__()
        rows = channels_first(weight, groups)
        scale = codebook.scale().view(-1, *[1] * (rows.dim() - 1))
        if groups and len(scale) > 1:
            scale = channels_back(scale.expand(-1, rows.shape[1], *scale.shape[2:]), groups)
        self.pruned, self.straight_through = 0, False
        self._unit = codebook_at(codebook.width, torch.zeros((), dtype=torch.int32))
        self.register_buffer("marks", torch.full_like(weight, FREE, dtype=torch.int8))
        self.register_buffer("scale", scale.to(weight.device))
        self.register_buffer("edge", torch.full((), math.inf, device=weight.device))
        self.register_buffer("table", self._table(weight.device), persistent=False)

    def _table(self, device: torch.device) -> Tensor | None:
        if self._unit.width.codebook == "power_of_two":
            return None
        table, levels = torch.zeros(1 << 8), self._unit.unit_levels()
        table[-self._unit.zero - FREE :][: len(levels)] = levels
        return table.to(device)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the network shall see it, same shape and type."""
        result: Tensor = _Hold.apply(weight, self.marks, self.scale, self.edge, self.table)  # type: ignore[no-untyped-call]
        if (
            self.straight_through
        ):  # the gradient is as if nothing were rounded (Bengio et al., arXiv 1308.3432)
            levels = self._unit.project(result / self.scale).mul_(self.scale).to(result.dtype)
            result = levels + (result - result.detach())
        return result

    @property
    def frozen(self) -> Tensor:
        """Which weights are frozen: bool, the weight's own shape."""
        return self.marks != FREE

    def snapshot(self) -> Callable[[], Tensor]:
        """What makes the mask of the weights that are frozen now, whenever it is called; it takes
        no memory of its own.
        """
        marks = self.marks
        return lambda: marks != FREE

    @torch.no_grad()
    def prune(self, mask: Tensor) -> None:
        """Freeze the weights under ``mask`` at zero, before any other; shares of the weights are
        shares of the rest.
        """
        self.marks = torch.where(mask, 0, self.marks)
        self.pruned = int(mask.sum())

    @torch.no_grad()
    def freeze(self, codes: Tensor, mask: Tensor) -> None:
        """Freeze the weights under ``mask`` that are still free, at ``codes``; both of the weight's
        own shape.
        """
        marks = codes.int() - self._unit.zero
        if self.table is None:
            field = ONE - self._unit.zero + marks.abs()
            marks = torch.where(marks == 0, 0, torch.where(marks < 0, field + FREE, field))
        grown = torch.where(mask & ~self.frozen, marks.to(torch.int8), self.marks)
        self.marks = torch.empty_like(self.marks).copy_(
            grown
        )  # a new tensor: snapshots stay what they are
        free = self.marks.numel() - int(self.frozen.sum())
        self.edge.fill_(self._unit.edge + ROOM * free / max(1, self.marks.numel() - self.pruned))


# The functions below work on the bits of floats. Masks in bool and look-ups by index cost ten times
# as much per weight, which is what would make a step with frozen weights slower than a plain one.


class _Hold(torch.autograd.Function):
    """``where(free, clamp(weight), level)``; the gradient passes the clamp, and saves only the
    marks, which are kept anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, marks: Tensor, scale: Tensor, edge: Tensor, table: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(marks)
        bits = marks.int()
        free = _free_bits(bits, BITS[weight.element_size()])
        if table is None:
            bits <<= MANTISSA
            bits &= LEVEL
            level = bits.view(torch.float32)
        else:
            bits -= FREE
            level = table[bits]
        level = level.mul_(scale).to(weight.dtype).view(free.dtype)
        bound = (edge * scale).to(weight.dtype)
        result = weight.minimum(bound)
        torch.maximum(result, -bound, out=result)
        seen = result.view(free.dtype)
        seen ^= level
        seen &= free
        seen ^= level
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (marks,), (gradient,) = ctx.saved_tensors, gradients
        if gradient.is_sparse:  # an embedding's, of the rows that were looked up
            rows = gradient.coalesce()
            values = _OnlyFree.apply(rows.values(), marks[rows.indices()[0]])  # type: ignore[no-untyped-call]
            masked = torch.sparse_coo_tensor(
                rows.indices(), values, rows.shape, is_coalesced=True, check_invariants=False
            )
        else:
            masked = _OnlyFree.apply(gradient, marks)  # type: ignore[no-untyped-call]
        return masked, None, None, None, None


class _OnlyFree(torch.autograd.Function):
    """``where(free, values, 0)``: exactly 0, whatever the values are. It is its own derivative."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, marks: Tensor) -> Tensor:
        ctx.save_for_backward(marks)
        free = _free_bits(marks.int(), BITS[values.element_size()])
        free &= values.view(free.dtype)
        return free.view(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        masked: Tensor = _OnlyFree.apply(gradients[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return masked, None


def _free_bits(marks: Tensor, wide: torch.dtype) -> Tensor:
    """Integers with all bits set where a weight is free, none where it is frozen."""
    bits = marks - (FREE + 1)
    bits >>= MANTISSA  # what is negative becomes -1
    return bits.to(wide)


def hold(layer: Layer, codebook: Codebook) -> FrozenWeights:
    """Put a :class:`FrozenWeights` on a layer's parameter, at every place that shares it. The Parameter
    object stays the same.
    """
    held = FrozenWeights(layer.weight, codebook, layer.groups)
    attach(layer, held)
    return held
