"""The parametrization that keeps frozen weights still under any optimizer.

Masking gradients does not keep a weight still: momentum and weight decay still move it. Instead,
each quantized parameter gets a parametrization: the network sees the level where a weight is frozen
and the trained value where it is free.

Free weights are bounded too. Without a bound, the last few of them grow far beyond the largest
level while they compensate for all the others, and rounding them in the end destroys the network.
So the network sees free weights clamped to a bound. As the free share falls, the bound closes on
the range of the codebook: the outer edge of the largest level's cell. INQ's paper bounds nothing;
with its own formula for the largest exponent, every weight starts within that range.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from octavo.formats.codebook import Codebook
from octavo.formats.registry import codebook_at
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.network.parametrizations import attach

__all__ = ["FrozenWeights", "attach_frozen_weights", "is_frozen"]

# The bound of free weights, in units of the scale: edge + ROOM * free share.
ROOM = 3.0

# One byte, the mark, says of each weight that it is free, or at which level it is frozen.
# If the levels are powers of two, the mark of a frozen weight is a part of its level in float32,
# for a scale of 1. Such a number has a sign bit (31), eight bits of exponent (23 to 30) and the
# mantissa, which is empty for a power of two. A level of at most 1 has an exponent field of at most
# 127, so that bit 30 is zero. A positive level has its exponent field as its mark, a negative one
# its exponent field minus 128. As int32, shifted up by 23, the mark has the exponent in bits 23 to
# 30 and the sign in bit 31; bit 30, which repeats the sign, must be cleared. For other levels the
# mark is the number of the level, counted from zero, and is looked up in a table.
FREE = -128
MANTISSA = 23
BIAS = 127
LEVEL_BITS = ~(1 << 30)

# The integer type as wide as a float of so many bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_frozen(marks: Tensor) -> Tensor:
    """Return the mask of the frozen weights, from their marks: bool, same shape."""
    return marks != FREE


class FrozenWeights(nn.Module):
    """A parametrization that replaces frozen weights by their levels.

    It keeps one byte for each weight, and its output takes four while a graph is alive: 5 bytes of
    extra memory a weight.

    Attributes:
        pruned: the number of weights that were frozen at zero before any other.
        straight_through: True if the network sees free weights at their nearest levels too, while
            gradients pass straight through to their trained values.
        marks: int8, the weight's shape: free, or the level at a scale of 1 (see above).
        scale: float32, broadcastable to the weight: levels are unit levels times the scale.
        edge: the bound of free weights in units of the scale; infinite until the first freezing.
        table: the unit level of each mark, from the mark FREE on; None if levels are powers of two,
            which marks spell out.

    """

    pruned: int
    straight_through: bool
    marks: Tensor
    scale: Tensor
    edge: Tensor
    table: Tensor | None

    def __init__(self, weight: Tensor, codebook: Codebook, groups: int = 0) -> None:
        super().__init__()
        self.pruned = 0
        self.straight_through = False
        self._unit = codebook_at(codebook.width, torch.zeros((), dtype=torch.int32))
        scale = _broadcastable_scale(weight, codebook, groups)
        self.register_buffer("marks", torch.full_like(weight, FREE, dtype=torch.int8))
        self.register_buffer("scale", scale.to(weight.device))
        self.register_buffer("edge", torch.full((), math.inf, device=weight.device))
        self.register_buffer("table", self._level_table(weight.device), persistent=False)

    def _level_table(self, device: torch.device) -> Tensor | None:
        if self._unit.width.codebook == "power_of_two":
            return None
        levels = self._unit.unit_levels()
        first = -self._unit.zero - FREE  # the index of the lowest level, whose mark is -zero
        table = torch.zeros(1 << 8)
        table[first : first + len(levels)] = levels
        return table.to(device)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the network shall see it, same shape and type."""
        result: Tensor = _ReplaceFrozen.apply(  # type: ignore[no-untyped-call]
            weight, self.marks, self.scale, self.edge, self.table
        )
        if self.straight_through:  # Bengio et al., arXiv 1308.3432
            levels = self._unit.project(result / self.scale).mul_(self.scale).to(result.dtype)
            result = levels + (result - result.detach())
        return result

    @property
    def frozen(self) -> Tensor:
        """The mask of the frozen weights: bool, the weight's shape."""
        return is_frozen(self.marks)

    @torch.no_grad()
    def prune(self, mask: Tensor) -> None:
        """Freeze the weights under ``mask`` at zero, before any other. Later shares of the weights
        are shares of the others.
        """
        self.marks = torch.where(mask, 0, self.marks)
        self.pruned = int(mask.sum())

    @torch.no_grad()
    def freeze(self, codes: Tensor, mask: Tensor) -> None:
        """Freeze at ``codes`` those weights under ``mask`` that are still free; both tensors have
        the weight's shape.
        """
        newly = mask & ~self.frozen
        marks = torch.where(newly, self._marks_of(codes), self.marks)
        # A new tensor, because masks of earlier stages read the old one; empty_like keeps the
        # memory format of the weight.
        self.marks = torch.empty_like(self.marks).copy_(marks)
        free = self.marks.numel() - int(self.frozen.sum())
        survivors = self.marks.numel() - self.pruned
        self.edge.fill_(self._unit.edge + ROOM * free / max(1, survivors))

    def _marks_of(self, codes: Tensor) -> Tensor:
        """Turn codes into marks: int8."""
        number = codes.int() - self._unit.zero  # of the level, counted from zero
        if self.table is not None:
            return number.to(torch.int8)
        # Level number k > 0 of z above zero is 2^(k - z), and level -k is -2^(k - z).
        exponent_field = BIAS + number.abs() - self._unit.zero
        signed = torch.where(number < 0, exponent_field + FREE, exponent_field)
        return torch.where(number == 0, 0, signed).to(torch.int8)


def _broadcastable_scale(weight: Tensor, codebook: Codebook, groups: int) -> Tensor:
    """Return the scales, one or one per output channel, in a shape that multiplies the weight."""
    rows = channels_first(weight, groups)
    scale = codebook.scale().view(-1, *[1] * (rows.dim() - 1))  # (channels or 1, 1, ...)
    if groups and len(scale) > 1:  # a transposed convolution: its output channels are second
        scale = scale.expand(-1, rows.shape[1], *scale.shape[2:])
        scale = channels_back(scale, groups)
    return scale


# The functions below work on the bits of floats. Masks in bool and look-ups by index cost ten times
# as much per weight, which would make a step with frozen weights slower than a plain one.


class _ReplaceFrozen(torch.autograd.Function):
    """``where(free, clamp(weight, -bound, bound), level)``.

    The gradient passes the clamp as if it were not there. The graph saves only the marks, which are
    kept anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, marks: Tensor, scale: Tensor, edge: Tensor, table: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(marks)
        wide_marks = marks.int()
        free = _free_bits(wide_marks, INTEGERS[weight.element_size()])
        level = _unit_levels(wide_marks, table).mul_(scale).to(weight.dtype).view(free.dtype)
        bound = (edge * scale).to(weight.dtype)
        result = weight.minimum(bound)
        torch.maximum(result, -bound, out=result)
        # In place, (result & free) | (level & ~free) = ((result ^ level) & free) ^ level.
        bits = result.view(free.dtype)
        bits ^= level
        bits &= free
        bits ^= level
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        (marks,) = ctx.saved_tensors
        if gradient.is_sparse:
            return _zero_frozen_rows(gradient, marks), None, None, None, None
        masked: Tensor = _ZeroFrozen.apply(gradient, marks)  # type: ignore[no-untyped-call]
        return masked, None, None, None, None


def _zero_frozen_rows(gradient: Tensor, marks: Tensor) -> Tensor:
    """Mask a sparse gradient: an embedding's, with the rows that were looked up."""
    gradient = gradient.coalesce()
    rows = gradient.indices()
    values = _ZeroFrozen.apply(gradient.values(), marks[rows[0]])  # type: ignore[no-untyped-call]
    return torch.sparse_coo_tensor(
        rows, values, gradient.shape, is_coalesced=True, check_invariants=False
    )


class _ZeroFrozen(torch.autograd.Function):
    """``where(free, values, 0)``: exactly 0, whatever the values are. It is its own derivative."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, marks: Tensor) -> Tensor:
        ctx.save_for_backward(marks)
        bits = _free_bits(marks.int(), INTEGERS[values.element_size()])
        bits &= values.view(bits.dtype)
        return bits.view(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (marks,) = ctx.saved_tensors
        masked: Tensor = _ZeroFrozen.apply(gradients[0], marks)  # type: ignore[no-untyped-call]
        return masked, None


def _free_bits(wide_marks: Tensor, integer: torch.dtype) -> Tensor:
    """Return integers with all bits set where a weight is free and none where it is frozen, from
    marks as int32.
    """
    bits = wide_marks - (FREE + 1)  # negative only where a weight is free
    bits >>= 31  # fills all bits with the sign
    return bits.to(integer)


def _unit_levels(wide_marks: Tensor, table: Tensor | None) -> Tensor:
    """Return the levels of frozen weights at a scale of 1, float32, from marks as int32, which are
    overwritten. Where a weight is free, the value means nothing.
    """
    if table is None:
        wide_marks <<= MANTISSA
        wide_marks &= LEVEL_BITS
        return wide_marks.view(torch.float32)
    wide_marks -= FREE
    return table[wide_marks]


def attach_frozen_weights(layer: Layer, codebook: Codebook) -> FrozenWeights:
    """Put a :class:`FrozenWeights` on a layer's parameter, in every module that shares it. The
    Parameter object stays the same.
    """
    frozen_weights = FrozenWeights(layer.weight, codebook, layer.groups)
    attach(layer, frozen_weights)
    return frozen_weights
