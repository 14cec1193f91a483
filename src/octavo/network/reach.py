"""The layers that inputs reach: an expert of a mixture may be called by a few batches only."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.network.calls import call_alone, undisturbed
from octavo.network.forward import Inputs, check_batches, device_of, hooked, observing, on_device
from octavo.network.layer_inputs import layer_inputs, problem_count
from octavo.network.layers import Layer, calling_modules

__all__ = ["batches_for", "check_reached", "has_rows", "unreached"]


def unreached(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Inputs]) -> list[str]:
    """Return the names of the layers that none of the batches reaches; a call without a row does
    not count. Batches are only read until every layer is reached, as a rule by the first.

    Args:
        model: the model; it is left as it was.
        layers: layers of it.
        batches: inputs that it is called with.

    Raises:
        PlanError: there are no batches.

    """
    by_module = calling_modules(model, layers)
    # For each layer, the columns of inputs that each of its problems has had: (problems,)
    columns_of = {layer.name: torch.zeros(problem_count(layer), dtype=torch.int64, device="cpu")
                  for layer in layers}  # fmt: skip

    @torch.no_grad()  # a forward pass may have gradients on
    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for layer in by_module[module]:
            if layer.name in missing and has_rows(args, kwargs):
                for problem, columns in layer_inputs(layer, module, args, kwargs):
                    columns_of[layer.name][problem] += columns.shape[-1]

    hooks = [module.register_forward_pre_hook(see, with_kwargs=True) for module in by_module]
    missing = [layer.name for layer in layers]
    count = 0
    with hooked(hooks), observing(model), undisturbed(model):
        for count, batch in enumerate(batches, 1):
            call_alone(model, on_device(batch, device_of(model)), count - 1)
            missing = [name for name in missing if not bool(columns_of[name].all())]
            if not missing:
                break
    check_batches(count)
    return missing


def check_reached(names: Sequence[str]) -> None:
    """Raise PlanError if there are layers that no calibration input reaches; it names all."""
    if names:
        several = len(names) > 1
        raise PlanError(
            f"{', '.join(names)}: no calibration input reaches "
            f"{'these layers; leave them' if several else 'this layer; leave it'} out of the plan, "
            "or give inputs that do"
        )


def has_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell if a layer is called with any input; an expert may be called without a token."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    return not isinstance(first, Tensor) or first.numel() > 0


def batches_for(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Inputs], others: Iterable[Inputs]
) -> list[Inputs]:
    """Return those of the other batches that it takes for layers that ``batches`` do not reach."""
    missing = unreached(model, layers, batches)
    taken: list[Inputs] = []
    for batch in others if missing else ():
        still = unreached(model, [layer for layer in layers if layer.name in missing], [batch])
        if len(still) < len(missing):
            taken.append(batch)
            missing = still
    return taken
