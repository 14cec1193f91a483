"""All of it in one call, for people in a hurry: bits by search, then the closed form or INQ over a
loop of yours.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any

from torch import nn

from octavo.activations.quantization import quantize_activations
from octavo.dnq.searching import search
from octavo.errors import PlanError, nearest
from octavo.inq.incremental import Incremental
from octavo.network.calling import Inputs
from octavo.plan import Budget
from octavo.pruning.masks import find_kept
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed

__all__ = ["compress"]

GIVEN = {"model", "plan", "inputs", "budget"}  # what is no option here


def compress(
    model: nn.Module,
    inputs: Iterable[Inputs],
    *,
    budget: Budget,
    retrain: Callable[[nn.Module], object] | None = None,
    **options: Any,
) -> Packed:
    """Quantize ``model`` within ``budget``: bits for each layer are searched for, then all weights
    freeze.

    Args:
        model: the trained network; it is left as it was.
        inputs: batches that the model is called with, unlabelled, as for ``calibrate``.
        budget: what the plan may cost.
        retrain: trains the network that it is given, a copy of ``model``, for a while; it is called
            after each portion but the last (INQ, from the closed form). None: the closed form
            alone.
        options: of ``search``, and of ``Incremental``, or ``calibrate`` without ``retrain``;
            ``seed`` goes to both.

    Raises:
        PlanError: an unknown option, or as ``search`` and ``calibrate``.
        BudgetError: no plan can meet the budget; the message has the feasible range.

    """
    freeze = calibrate if retrain is None else Incremental
    for name in options:
        if name not in (known := _options(search) | _options(freeze)):
            raise PlanError(
                f"{name}: no option of search or {freeze.__name__}{nearest(name, known)}"
            )
    batches = list(inputs)
    plan = search(model, batches, budget=budget, **_of(search, options)).plan
    if plan.activations:
        model = copy.deepcopy(model)
        quantize_activations(model, batches, plan.activations)
    if retrain is None:
        return calibrate(model, plan, batches, **_of(calibrate, options))
    quantized, options = copy.deepcopy(model), {"masks": find_kept(model, plan)} | options
    calibrate(model, plan, batches).apply(quantized)
    incremental = Incremental(quantized, plan, **_of(Incremental, options))
    for stage in incremental:
        if not stage.last:
            retrain(quantized)
    return incremental.finish()


def _options(function: Callable[..., object]) -> set[str]:
    return set(signature(function).parameters) - GIVEN


def _of(function: Callable[..., object], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _options(function)}
