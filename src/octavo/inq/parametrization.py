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

from octavo.formats.codebook import Codebook, edges, power
from octavo.formats.rows import spread
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.network.parametrizations import attach

__all__ = ["FrozenWeights", "attach_frozen_weights"]

# The bound of free weights, in units of the scale: edge + ROOM * free share.
ROOM = 3.0


class FrozenWeights(nn.Module):
    """A parametrization that replaces frozen weights by their levels.

    The network sees ``where(frozen, value, clamp(weight, lower, upper))``: two operations, and a
    third for the gradient. It keeps five bytes for each weight, a bool and a float32 (twelve more
    where groups of inputs share an exponent), and its output takes four while a graph is alive.
    Nothing here waits for the device, so that a step on a GPU runs without a stop.

    Attributes:
        pruned: the number of weights that were frozen at zero before any other.
        straight_through: True if the network sees free weights at their nearest levels too, while
            gradients pass straight through to their trained values.
        frozen: the mask of the frozen weights: bool, the weight's shape.
        value: the level of each frozen weight, and 0 where a weight is free: the weight's shape and
            type.
        scale: float32, broadcastable to the weight: levels are unit levels times the scale.
        lower: the smallest value at which a free weight is seen, the scale's shape; minus infinity
            until the first freezing.
        upper: the largest such value.
        levels: the unit levels, ascending, between two NaN: float32, as the integers of their bits.
        edges: the edges between the cells of ``levels``, likewise. A module that is cast to another
            floating-point type leaves integers alone, so that no edge is rounded. Where a rate
            moves them, they are a part of the state dict.
        zero: the gradient of a frozen weight, a scalar.

    """

    pruned: int
    straight_through: bool
    frozen: Tensor
    value: Tensor
    scale: Tensor
    lower: Tensor
    upper: Tensor
    levels: Tensor
    edges: Tensor
    zero: Tensor

    def __init__(
        self, weight: Tensor, codebook: Codebook, groups: int = 0, *, priced: bool = False
    ) -> None:
        super().__init__()
        self.pruned = 0
        self.straight_through = False
        self._outer_edge = codebook.reach.edge  # of the largest level's cell, in units of the scale
        self._powers_of_two = codebook.width.codebook == "power_of_two"
        weight = weight.detach()
        scale = _broadcastable_scale(weight, codebook, groups).to(weight.device)
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("value", torch.zeros_like(weight))
        self.register_buffer("scale", scale)
        self.register_buffer("lower", torch.full_like(scale, -math.inf, dtype=weight.dtype))
        self.register_buffer("upper", torch.full_like(scale, math.inf, dtype=weight.dtype))
        unit = codebook.unit_levels().cpu()
        self.register_buffer("levels", _bits_of_levels(unit).to(weight.device), persistent=False)
        between = _bits_of_edges(edges(unit)).to(weight.device)
        self.register_buffer("edges", between, persistent=priced)
        self.register_buffer("zero", weight.new_zeros(()), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the network shall see it, same shape and type."""
        with torch.no_grad():
            if self.straight_through:  # Bengio et al., arXiv 1308.3432
                free = self._nearest(weight)
            else:
                free = torch.clamp(weight, self.lower, self.upper)
        seen: Tensor = _ReplaceFrozen.apply(  # type: ignore[no-untyped-call]
            weight, free, self.frozen, self.value, self.zero
        )
        return seen

    def _nearest(self, weight: Tensor) -> Tensor:
        """Round each weight to its nearest level. A weight that is NaN or infinite becomes NaN, so
        that a run that diverges does not look sound.
        """
        order = _memory_order(weight)  # bucketize would copy any other, and warn
        in_units = (weight / self.scale).float().permute(order)
        number = torch.bucketize(in_units, self.edges.view(torch.float32), right=True)
        level = self.levels.view(torch.float32)[number]
        back = sorted(range(weight.dim()), key=order.__getitem__)
        return (level.permute(back) * self.scale).to(weight.dtype)

    @torch.no_grad()
    def move_edges(self, between: Tensor) -> None:
        """Give the cells of levels other edges, ascending; an empty cell has two that are equal."""
        self.edges.copy_(_bits_of_edges(between))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Return the code of the cell of each weight: uint8, the weight's shape."""
        in_units = (weight / self.scale).float().contiguous()
        number = torch.bucketize(in_units, self.edges.view(torch.float32), right=True)
        return (number - 1).to(torch.uint8)  # the first level stands for minus infinity

    @torch.no_grad()
    def prune(self, mask: Tensor) -> None:
        """Freeze the weights under ``mask`` at zero, before any other. Later shares of the weights
        are shares of the others.
        """
        self._freeze_at(torch.zeros_like(self.value), mask)
        self.pruned = int(mask.count_nonzero())

    @torch.no_grad()
    def freeze(self, codes: Tensor, mask: Tensor) -> None:
        """Freeze at the levels of ``codes`` those weights under ``mask`` that are still free; both
        tensors have the weight's shape.
        """
        unit = self.levels.view(torch.float32)[1:-1]
        # (index_select takes an int32 as it is; an index in brackets makes an int64 of each)
        levels = unit.index_select(0, codes.flatten().int()).view(codes.shape).mul_(self.scale)
        self._freeze_at(levels, mask & ~self.frozen)
        free = self.frozen.numel() - int(self.frozen.count_nonzero())
        survivors = self.frozen.numel() - self.pruned
        bound = (self._outer_edge + ROOM * free / max(1, survivors)) * self.scale
        self.upper.copy_(bound)
        self.lower.copy_(-bound)

    def _freeze_at(self, levels: Tensor, mask: Tensor) -> None:
        """Freeze at ``levels`` under ``mask``. The buffers are written in place, so that they keep
        the memory format of the weight.
        """
        self.value.copy_(torch.where(mask, levels.to(self.value.dtype), self.value))
        self.frozen |= mask

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a state dict, also one of the versions that kept a mark for each weight."""
        if prefix + "marks" in state:
            unit = self.levels.view(torch.float32)[1:-1]
            _replace_marks(state, prefix, unit, powers_of_two=self._powers_of_two)
        super()._load_from_state_dict(state, prefix, *rest)


def _memory_order(weight: Tensor) -> tuple[int, ...]:
    """Return the dimensions of a dense tensor in the order in which they lie in memory."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return 0, 2, 3, 1
    if weight.dim() == 5 and weight.is_contiguous(memory_format=torch.channels_last_3d):
        return 0, 2, 3, 4, 1
    return tuple(range(weight.dim()))


def _bits_of_levels(unit: Tensor) -> Tensor:
    """Return the unit levels between two NaN: float32, as the integers of their bits."""
    return nn.functional.pad(unit, (1, 1), value=math.nan).view(torch.int32)


def _bits_of_edges(between: Tensor) -> Tensor:
    """Return the edges between cells, for ``torch.bucketize(..., right=True)``, and those between
    the outer cells and NaN: float32, as the integers of their bits.
    """
    between = between.cpu()
    lowest = between.new_tensor([torch.finfo(torch.float32).min])  # below it: only -infinity
    infinite = between.new_tensor([math.inf])  # NaN lies beyond it
    return torch.cat([lowest, between, infinite]).view(torch.int32)


def _broadcastable_scale(weight: Tensor, codebook: Codebook, groups: int) -> Tensor:
    """Return the scales, one, one per output channel or, with groups of inputs, one per weight, in
    a shape that multiplies the weight.
    """
    rows = channels_first(weight, groups)
    scale = spread(power(codebook.max_exponent), rows.shape, codebook.group_size)
    if groups and scale.numel() > 1:  # a transposed convolution: its output channels are second
        scale = scale.expand(-1, rows.shape[1], *scale.shape[2:])
        scale = channels_back(scale, groups).contiguous()  # no load could write an expanded one
    return scale


class _ReplaceFrozen(torch.autograd.Function):
    """``where(frozen, value, free)``. The gradient of free weights passes to ``weight`` unchanged,
    whatever ``free`` was made of; that of frozen weights is exactly 0, whatever it was.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,  # noqa: ARG004 - its gradient is that of the result
        free: Tensor,
        frozen: Tensor,
        value: Tensor,
        zero: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(frozen, zero)
        return torch.where(frozen, value, free)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        frozen, zero = ctx.saved_tensors
        if gradient.is_sparse:
            return _zero_frozen_rows(gradient, frozen, zero), None, None, None, None
        return torch.where(frozen, zero, gradient), None, None, None, None


def _zero_frozen_rows(gradient: Tensor, frozen: Tensor, zero: Tensor) -> Tensor:
    """Mask a sparse gradient: an embedding's, with the rows that were looked up."""
    gradient = gradient.coalesce()
    rows = gradient.indices()
    values = torch.where(frozen[rows[0]], zero, gradient.values())
    return torch.sparse_coo_tensor(
        rows,
        values,
        gradient.shape,
        device=gradient.device,
        is_coalesced=True,
        check_invariants=False,
    )


# Earlier versions kept a mark for each weight: int8, FREE for a free one. The mark of a frozen
# weight is the number of its level, counted from zero. For powers of two it is instead the exponent
# field that the level has in float32 at a scale of 1, minus 128 for a negative level.
FREE = -128
MANTISSA = 23  # the bits of a float32 below its exponent field


def _replace_marks(
    state: dict[str, Any], prefix: str, unit: Tensor, *, powers_of_two: bool
) -> None:
    """Replace the marks in a state dict, whose keys begin with ``prefix``, by what is kept now."""
    marks = state.pop(prefix + "marks")
    scale = state[prefix + "scale"]
    bound = state.pop(prefix + "edge") * scale
    frozen = marks != FREE
    number = torch.where(frozen, marks, 0).int()
    if powers_of_two:
        exponent_field = torch.where(number < 0, number - FREE, number)
        magnitude = (exponent_field << MANTISSA).view(torch.float32)
        level = torch.where(number < 0, -magnitude, magnitude)
    else:
        level = unit.to(marks.device)[number + len(unit) // 2]
    state[prefix + "frozen"] = frozen
    state[prefix + "value"] = level * scale
    state[prefix + "upper"] = bound
    state[prefix + "lower"] = -bound


def attach_frozen_weights(
    layer: Layer, codebook: Codebook, *, priced: bool = False
) -> FrozenWeights:
    """Put a :class:`FrozenWeights` on a layer's parameter, in every module that shares it. The
    Parameter object stays the same. ``priced`` says that its edges will be moved.
    """
    frozen_weights = FrozenWeights(layer.weight, codebook, layer.groups, priced=priced)
    attach(layer, frozen_weights)
    return frozen_weights
