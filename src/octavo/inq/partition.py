"""Which weights freeze next: scores and the growth of the frozen set (INQ, section 2.2; the
distance is DNQ's criterion).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import Codebook
from octavo.network.layers import Layer

__all__ = [
    "PORTIONS",
    "SPARSE_PORTIONS",
    "Order",
    "check_order",
    "check_portions",
    "check_straight_through",
    "grow",
    "orders_of",
    "portions_for",
    "score",
]

Order = Literal["magnitude", "distance", "relative", "far", "random"]

PORTIONS = (0.5, 0.75, 0.875, 1.0)  # INQ's, of VGG-16, ResNet-18 and ResNet-50 at 5 bits
SPARSE_PORTIONS = (
    0.05,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    1.0,
)  # INQ's, of survivors of pruning

SPARSE = 0.5  # share of pruned weights from which on a network is called sparse: ours


def score(
    weight: Tensor, codebook: Codebook, order: Order, *, generator: torch.Generator | None = None
) -> Tensor:
    """How early each weight freezes, the highest first: float32, shape of ``weight``.

    ``magnitude``: the largest first (INQ's choice); ``distance``: the nearest to its level first
        (DNQ's criterion);
    ``relative``: likewise, but in units of that level, and next to zero of half the smallest;
        ``far``: the farthest first;
    ``random``: drawn from ``generator`` (INQ's other choice).
    """
    check_order(order)
    if order == "magnitude":
        return weight.detach().float().abs()
    if order == "random":
        return torch.rand(weight.shape, generator=generator).to(weight.device)
    levels = codebook.project(weight)
    distance = (weight.detach().float() - levels).abs_()
    if order == "relative":
        scale = codebook.scale().to(weight.device).view(-1, *[1] * (weight.dim() - 1))
        distance /= levels.abs_().maximum(
            scale * float(codebook.unit_levels()[codebook.zero + 1] / 2)
        )
    return distance if order == "far" else distance.neg_()


def grow(frozen: Tensor, score: Tensor, portion: float, *, pruned: int = 0) -> Tensor:
    """The frozen set grown to ``round(portion * frozen.numel())`` weights, by the highest ``score``
    among the free ones.

    Pure; what is frozen stays frozen, even where the portion asks for less than is frozen already.
    Equal scores freeze in the tensor's order.

    Args:
        frozen: bool, any shape.
        score: floats, same shape.
        portion: share of all weights that shall be frozen, 0 to 1.
        pruned: how many weights, of the frozen ones, do not count.

    """
    missing = pruned + round(portion * (frozen.numel() - pruned)) - int(frozen.sum())
    if missing <= 0:
        return frozen.clone()
    free = (~frozen.flatten()).nonzero().squeeze(1)
    first = score.flatten()[free].sort(descending=True, stable=True).indices[:missing]
    grown = frozen.flatten().clone()
    grown[free[first]] = True
    return grown.view(frozen.shape)


def check_order(order: str) -> None:
    """Raise PlanError unless ``order`` is known."""
    if order not in get_args(Order):
        raise PlanError(f"order: expected one of {', '.join(get_args(Order))}, got {order!r}")


def orders_of(order: str | Sequence[str], portions: int) -> tuple[Order, ...]:
    """The order of each portion, from one for all of them or one each.

    Raises:
        PlanError: an unknown order, or not as many as there are portions.

    """
    orders = (
        (order,) * portions
        if isinstance(order, str) or not isinstance(order, Sequence)
        else tuple(order)
    )
    for one in orders:
        check_order(one)
    if len(orders) != portions:
        raise PlanError(f"order: expected one, or {portions}, one a portion; got {len(orders)}")
    return cast("tuple[Order, ...]", orders)


def check_portions(portions: Sequence[float]) -> None:
    """Raise PlanError unless ``portions`` rise strictly, within (0, 1], and end at 1."""
    numbers = isinstance(portions, Sequence) and all(isinstance(p, int | float) for p in portions)
    if not numbers or not _rises_to_one(portions):
        raise PlanError(
            f"portions: expected shares that rise strictly from above 0 to exactly 1, got {portions!r}"
        )


def check_straight_through(straight_through: float, portions: Sequence[float]) -> None:
    """Raise PlanError unless it is 1, for never, or some portion before the last reaches it."""
    if straight_through != 1 and not any(
        0 < straight_through <= portion < 1 for portion in portions
    ):
        raise PlanError(
            f"straight_through: expected 1, for never, or at most one of {portions} before 1, got {straight_through!r}"
        )


def _rises_to_one(portions: Sequence[float]) -> bool:
    return (
        bool(portions)
        and portions[0] > 0
        and portions[-1] == 1
        and all(a < b for a, b in itertools.pairwise(portions))
    )


def portions_for(layers: Iterable[Layer], pruned: Mapping[str, Tensor]) -> tuple[float, ...]:
    """INQ's accumulated portions where none are given: finer ones where at least half of the
    weights are pruned.
    """
    share = sum(int(mask.sum()) for mask in pruned.values()) / sum(
        layer.weight.numel() for layer in layers
    )
    return SPARSE_PORTIONS if share >= SPARSE else PORTIONS
