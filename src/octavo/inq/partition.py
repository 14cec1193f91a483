"""The partition of INQ: the rank by which weights freeze, and the growth of the frozen set (arXiv
1702.03044, section 2.2; the order by distance is DNQ's criterion, arXiv 1812.02375).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.codebook import Codebook, power
from octavo.formats.rows import spread
from octavo.network.layers import Layer

__all__ = [
    "ORDER",
    "PORTIONS",
    "SPARSE_PORTIONS",
    "STRAIGHT_THROUGH",
    "FreezeOrder",
    "Order",
    "RankFunction",
    "check_order",
    "check_portions",
    "check_schedule",
    "check_straight_through",
    "default_portions",
    "grow",
    "order_name",
    "orders_of",
    "rank",
]

RankFunction: TypeAlias = Callable[[Tensor, Codebook], Tensor]
Order: TypeAlias = Literal["magnitude", "distance", "relative", "random"]
FreezeOrder: TypeAlias = Order | RankFunction
NAMES = get_args(Order)

# INQ's portions for VGG-16, ResNet-18 and ResNet-50 at 5 bits, and those for a pruned AlexNet.
PORTIONS = (0.5, 0.75, 0.875, 1.0)
SPARSE_PORTIONS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
ORDER: Order = "magnitude"  # the default
STRAIGHT_THROUGH = 1.0  # the default: the network never sees free weights at their levels
SPARSE = 0.5  # share of pruned weights from which on a network counts as sparse; the value is ours


def rank(
    weight: Tensor,
    codebook: Codebook,
    order: FreezeOrder,
    *,
    levels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rank the weights of a layer: the one of the highest rank freezes first.

    Args:
        weight: the weight with its output channels first.
        codebook: its levels.
        order: ``"magnitude"`` freezes the largest weights first (INQ's order); ``"distance"``
            those nearest to their level (DNQ's criterion); ``"relative"`` those nearest in units of
            their level, where half of the smallest level stands for the level zero; ``"random"``
            draws from ``generator`` (the other order that INQ compares). A function is called with
            the weight and the codebook and returns the rank.
        levels: the level that each weight would take, the weight's shape; None: the nearest.
        generator: the source of the order ``"random"``.

    Returns:
        float32, shape of ``weight``.

    Raises:
        PlanError: an unknown order, or a function that does not return such a rank.

    """
    check_order(order)
    if callable(order):
        return _rank_by(order, weight, codebook)
    if order == "random":
        drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float32, device="cpu")
        return drawn.to(weight.device)
    values = weight.detach().float()
    if order == "magnitude":
        return values.abs()
    levels = codebook.project(weight) if levels is None else levels.clone()
    distance = (values - levels).abs_()
    if order == "relative":
        smallest = float(codebook.unit_levels()[codebook.zero + 1])  # above zero, at a scale of 1
        scale = power(codebook.max_exponent).to(weight.device)
        scale = spread(scale, weight.shape, codebook.group_size)
        distance /= torch.maximum(levels.abs_(), scale * smallest / 2, out=levels)
    return distance.neg_()


def _rank_by(function: RankFunction, weight: Tensor, codebook: Codebook) -> Tensor:
    """Call a user's function with a copy of the weight, and check what it returns."""
    ranks = function(weight.detach().clone(), codebook)
    shape = tuple(weight.shape)
    if not isinstance(ranks, Tensor) or ranks.shape != weight.shape:
        got = tuple(ranks.shape) if isinstance(ranks, Tensor) else type(ranks).__name__
        raise PlanError(
            f"order: expected {order_name(function)}(weight, codebook) to return a tensor of the "
            f"weight's shape {shape}, got {got}"
        )
    ranks = ranks.detach().float().to(weight.device)
    if bool(ranks.isnan().any()):
        raise PlanError(
            f"order: expected {order_name(function)}(weight, codebook) to return numbers, got NaN"
        )
    return ranks


def grow(frozen: Tensor, rank: Tensor, portion: float, *, pruned: int = 0) -> Tensor:
    """Grow the frozen set to ``round(portion * weights)`` weights: add the free weights of the
    highest rank.

    A new mask is returned. What is frozen stays frozen, even if the portion asks for less than is
    frozen already. Weights of equal rank freeze in the tensor's order.

    Args:
        frozen: bool, any shape.
        rank: floats, same shape.
        portion: share of the weights that shall be frozen, 0 to 1; pruned weights do not count.
        pruned: the number of pruned weights, all of them frozen.

    """
    target = pruned + round(portion * (frozen.numel() - pruned))
    missing = target - int(frozen.count_nonzero())
    if missing <= 0:
        return frozen.clone()
    free = ~frozen
    threshold = _largest(rank.detach().masked_fill(frozen, -math.inf), missing)
    grown = frozen | (free & (rank > threshold))
    ties = (free & (rank == threshold)).flatten().nonzero().squeeze(1)  # in the tensor's order
    grown = grown.flatten()
    grown[ties[: target - int(grown.count_nonzero())]] = True
    return grown.view(frozen.shape)


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the smallest of the ``count`` largest values, a scalar; on a CPU, the values change
    their order.
    """
    values = values.flatten()
    position = len(values) - count  # in ascending order
    if values.device.type != "cpu":
        return values.kthvalue(position + 1).values
    values.numpy().partition(position)  # in place, where torch would make an int64 of each
    return values[position]


def check_order(order: Any) -> None:
    """Raise PlanError unless ``order`` is the name of an order or a function."""
    if callable(order) or (isinstance(order, str) and order in NAMES):
        return
    if order == "far":
        raise PlanError(
            'order: "far" is no longer part of octavo; pass a function (weight, codebook) -> rank, '
            "such as far in benchmarks/orders.py (in a recipe: path/to/orders.py:far)"
        )
    raise PlanError(
        f"order: expected one of {', '.join(NAMES)}, or a function (weight, codebook) -> rank, "
        f"got {order!r}"
    )


def order_name(order: Any) -> str:
    """Return the name of an order, for messages and saved states; a function has its qualified
    name.
    """
    if isinstance(order, str):
        return order
    name = getattr(order, "__qualname__", None) or type(order).__qualname__
    return str(name)


def orders_of(order: FreezeOrder | Sequence[FreezeOrder], portions: int) -> tuple[FreezeOrder, ...]:
    """Return the order of each portion, from one order for all of them or from one for each.

    Raises:
        PlanError: an unknown order, or not as many orders as there are portions.

    """
    orders: tuple[Any, ...] = (order,) * portions
    if isinstance(order, Sequence) and not isinstance(order, str):
        orders = tuple(order)
    for one in orders:
        check_order(one)
    if len(orders) != portions:
        raise PlanError(
            f"order: expected one, or {portions}, one for each portion; got {len(orders)}"
        )
    return orders


def check_portions(portions: Sequence[float]) -> None:
    """Raise PlanError unless ``portions`` rise strictly, within (0, 1], and end at 1."""
    numbers = isinstance(portions, Sequence) and all(isinstance(p, int | float) for p in portions)
    if not numbers or not _rises_to_one(portions):
        raise PlanError(
            "portions: expected shares that rise strictly from above 0 to exactly 1, "
            f"got {portions!r}"
        )


def _rises_to_one(portions: Sequence[float]) -> bool:
    if not portions or portions[0] <= 0 or portions[-1] != 1:
        return False
    return all(earlier < later for earlier, later in itertools.pairwise(portions))


def check_straight_through(straight_through: float, portions: Sequence[float]) -> None:
    """Raise PlanError unless ``straight_through`` is 1, for never, or a portion before the last
    reaches it.
    """
    if straight_through == 1:
        return
    if not any(0 < straight_through <= portion < 1 for portion in portions):
        raise PlanError(
            f"straight_through: expected 1, for never, or at most one of {portions} before 1, "
            f"got {straight_through!r}"
        )


def check_schedule(portions: Sequence[float], straight_through: float) -> None:
    """Raise PlanError unless both the portions and ``straight_through`` are possible."""
    check_portions(portions)
    check_straight_through(straight_through, portions)


def default_portions(layers: Iterable[Layer], pruned: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Return INQ's accumulated portions for these layers: finer ones if at least half of the
    weights are pruned.
    """
    weights = sum(layer.weight.numel() for layer in layers)
    share = sum(int(mask.count_nonzero()) for mask in pruned.values()) / weights
    return SPARSE_PORTIONS if share >= SPARSE else PORTIONS
