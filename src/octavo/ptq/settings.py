"""The settings of post-training quantization (PTQ), and the one home of their defaults."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from octavo.errors import PlanError
from octavo.formats.fitting import Fit, Per
from octavo.plan import Budget
from octavo.ptq.file_budget import check_file_budget

__all__ = ["DEFAULTS", "PtqOrder", "PtqSettings", "check_ptq_order"]

PtqOrder = Literal["gptq", "distance", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class PtqSettings:
    """All that may be chosen about PTQ, apart from the model, the plan and the inputs.

    ``fit`` and ``per`` are checked where a layer's codebook is made, so that the error names the
    layer.

    Attributes:
        order: the order in which weights freeze. ``"gptq"`` has one order for all rows of a layer
            (GPTQ, arXiv 2210.17323). ``"distance"`` freezes the cheapest weight of each row first
            (OBQ, arXiv 2208.11580; DNQ's criterion, weighted by the inputs). ``"magnitude"``
            freezes the largest weight of each row first (INQ's criterion).
        fit: the choice of the largest exponent. ``"max"`` is INQ's formula; ``"mse"`` tries the
            exponent of least squared error of the outputs, and its neighbours.
        per: one largest exponent per ``"channel"`` (output channel), one for the whole tensor, or
            one for each group of a channel's inputs, ``("group", 32)``.
        damp: share of the mean diagonal of the inputs' second moment that is added to its diagonal.
        sequential: each layer sees the inputs that the quantized layers ahead of it produce; if
            false, every layer sees full-precision inputs.
        absorb: give each channel ahead of a batch norm a scale of its own, which the batch norm
            cancels.
        rate: the share of a row's error that a bit less in each of its weights is worth: see
            ``octavo.ptq.pricing``. 0 counts the error alone.
        budget: instead of a rate, a limit on the file: the rate is found that meets it.
        masks: layer name to mask, false where a weight is pruned; ``{}`` if none is. None takes
            zeros for pruned weights where ``octavo.formats.zeros.pruned_mask`` does.

    Raises:
        PlanError: an unknown order, or a damping or a rate that is no finite number of at least 0.
        BudgetError: a budget that is not one of the file, or that stands beside a rate.

    """

    order: PtqOrder = "gptq"
    fit: Fit = "mse"
    per: Per = "channel"
    damp: float = 0.01
    sequential: bool = True
    absorb: bool = False
    rate: float = 0.0
    budget: Budget | None = None
    masks: Mapping[str, Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_ptq_order(self.order)
        for name in ("damp", "rate"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise PlanError(f"{name}: expected a number of at least 0, got {value!r}")
        if self.budget is not None:
            check_file_budget(self.budget, self.rate)


def check_ptq_order(order: str) -> None:
    """Raise PlanError unless ``order`` is one of the orders of PTQ."""
    known = get_args(PtqOrder)
    if order not in known:
        raise PlanError(f"order: expected one of {', '.join(known)}, got {order!r}")


DEFAULTS = PtqSettings()
