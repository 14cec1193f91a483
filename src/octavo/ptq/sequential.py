"""Freeze layers in forward order, each from the inputs that it has once the layers ahead of it are
quantized.

For each batch the full-precision and the quantized network run side by side. All passes wait at a
layer until its weight has frozen from the inputs that all batches bring there; so nothing runs
twice.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from octavo.network.forward import (
    Inputs,
    batches_of,
    call,
    check_batches,
    device_of,
    hooked,
    on_device,
)
from octavo.network.kinds import ONE_WEIGHT
from octavo.network.layer_inputs import layer_inputs, layer_outputs
from octavo.network.layers import Layer, calling_modules
from octavo.network.moments import Moments
from octavo.network.stepping import Stop, stepwise_forward, stopping
from octavo.ptq.float_inputs import freeze_from_float

__all__ = ["count_calls", "freeze_in_forward_order", "freeze_sequentially"]

Outcome = TypeVar("Outcome")


def freeze_sequentially(
    model: nn.Module,
    quantized: nn.Module,
    layers: Sequence[Layer],
    inputs: Iterable[Inputs],
    freeze: Callable[[Layer, Moments], Outcome],
) -> dict[str, Outcome]:
    """Freeze layers in forward order, and return the outcome of each that an input reaches, by
    name.

    Layers that are used more than once have no single position in that order. They come first, from
    full-precision inputs.

    Args:
        model: the network in full precision.
        quantized: a copy of it, whose weights ``freeze`` changes in place.
        layers: the layers of ``quantized`` to freeze.
        inputs: calibration inputs.
        freeze: freezes a layer in place, from the moments of its inputs.

    """
    batches = [on_device(batch, device_of(model)) for batch in batches_of(inputs)]
    check_batches(len(batches))
    by_module = _called_once(quantized, layers, batches[0])
    called_once = {layer.name for here in by_module.values() for layer in here}
    others = [layer for layer in layers if layer.name not in called_once]
    outcomes = freeze_from_float(quantized, others, batches, freeze) if others else {}
    return outcomes | freeze_in_forward_order(model, quantized, by_module, batches, freeze)


def freeze_in_forward_order(
    model: nn.Module,
    quantized: nn.Module,
    layers: Mapping[nn.Module, Sequence[Layer]],
    batches: Sequence[Inputs],
    freeze: Callable[[Layer, Moments], Outcome],
) -> dict[str, Outcome]:
    """Freeze ``layers`` in the order in which the inputs reach them, and return the outcome of each
    that is reached, by layer name.

    Args:
        model: the network in full precision.
        quantized: a copy of it, whose weights ``freeze`` changes in place.
        layers: layers of ``quantized``, by the module whose call shows their inputs; if a module is
            called more than once, its layers freeze at the first call.
        batches: calibration inputs.
        freeze: called once for each layer that is reached.

    """
    outcomes = dict[str, Outcome]()
    waiting = dict(layers)
    order = {module: position for position, module in enumerate(quantized.modules())}
    partners = _partners(model, quantized, layers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping(before=layers, after=partners))
        passes = [_side_by_side(model, quantized, partners, batch) for batch in batches]
        for one in passes:
            stack.callback(one.close)
        meetings = [next(one, None) for one in passes]  # for each batch; None at its end
        while any(meetings):
            module = _next_module(meetings, order)
            here = _meetings_at(module, meetings)
            outcomes |= _freeze_here(waiting.pop(module, ()), here, freeze)
            del here  # else every batch would be in memory twice while the passes go on
            _go_on(passes, meetings, module)
    return outcomes


def count_calls(
    model: nn.Module, modules: Collection[nn.Module], batch: Inputs
) -> Counter[nn.Module]:
    """Count the calls of each of the modules in one forward pass."""
    counts: Counter[nn.Module] = Counter()

    def count(module: nn.Module, _: object) -> None:
        counts[module] += 1

    with hooked(module.register_forward_pre_hook(count) for module in modules):
        call(model, batch)
    return counts


@dataclass(frozen=True, eq=False)
class _Meeting:
    """A module at which the quantized network waits, on one batch.

    Attributes:
        stop: the call of a module that the quantized network is about to make.
        full_output: the output of the same call in the full-precision network; None if that
            network took another path.

    """

    stop: Stop
    full_output: Any


def _side_by_side(
    model: nn.Module,
    quantized: nn.Module,
    partners: Mapping[nn.Module, nn.Module],
    batch: Inputs,
) -> Generator[_Meeting, None, None]:
    """Run both networks on one batch: yield wherever the quantized one stops."""
    full_pass = stepwise_forward(model, batch)
    quantized_pass = stepwise_forward(quantized, batch)
    with contextlib.closing(full_pass), contextlib.closing(quantized_pass):
        for stop in quantized_pass:
            beside = next(full_pass, None)
            same_path = beside is not None and partners[beside.module] is stop.module
            yield _Meeting(stop, beside.output if beside is not None and same_path else None)
        next(full_pass, None)  # this network comes to its end as well


def _next_module(meetings: Iterable[_Meeting | None], order: Mapping[nn.Module, int]) -> nn.Module:
    """Return the module whose layers freeze next: of those at which passes stand, the one that was
    registered first. From there, passes may still come to the others.
    """
    modules = {meeting.stop.module for meeting in meetings if meeting}
    return min(modules, key=order.__getitem__)


def _meetings_at(module: nn.Module, meetings: Iterable[_Meeting | None]) -> list[_Meeting]:
    """Return the meetings at one module."""
    return [meeting for meeting in meetings if meeting and meeting.stop.module is module]


def _go_on(
    passes: Sequence[Iterator[_Meeting]], meetings: list[_Meeting | None], module: nn.Module
) -> None:
    """Let the passes that stand at one module go on, and replace their meetings, one after another.

    Each lets go of the inputs that it had there, so no more than one batch is in memory twice.
    """
    for index, one in enumerate(passes):
        if _meetings_at(module, meetings[index : index + 1]):
            meetings[index] = next(one, None)


def _partners(
    model: nn.Module, quantized: nn.Module, modules: Iterable[nn.Module]
) -> dict[nn.Module, nn.Module]:
    """Return these modules of ``quantized``, by the modules of ``model`` with the same names."""
    names = {module: name for name, module in quantized.named_modules()}
    return {model.get_submodule(names[module]): module for module in modules}


def _called_once(
    model: nn.Module, layers: Iterable[Layer], batch: Inputs
) -> dict[nn.Module, list[Layer]]:
    """Return the layers whose inputs are all seen in one call of a forward pass, by the module that
    is called.
    """
    by_module = calling_modules(model, layers)
    counts = count_calls(model, by_module, batch)
    shared = {
        layer.name
        for module, here in by_module.items()
        for layer in here
        if layer.tied or counts[module] > 1
    }
    return {
        module: here
        for module, here in by_module.items()
        if not shared & {layer.name for layer in here}
    }


def _freeze_here(
    layers: Sequence[Layer],
    meetings: Sequence[_Meeting],
    freeze: Callable[[Layer, Moments], Outcome],
) -> dict[str, Outcome]:
    """Freeze the layers of one module, at which the passes of some batches stand."""
    outcomes = dict[str, Outcome]()
    for layer in layers:
        moments = _moments(layer, meetings)
        if moments.seen:  # a call without a row is as good as none
            outcomes[layer.name] = freeze(layer, moments)
    return outcomes


def _moments(layer: Layer, meetings: Sequence[_Meeting]) -> Moments:
    """Return the moments of the inputs that all batches bring to a layer."""
    moments = Moments.of(layer)
    linear = layer.form in ONE_WEIGHT  # its outputs are linear in its inputs
    for meeting in meetings:
        stop = meeting.stop
        drift = _drift(meeting) if linear else None
        start = 0
        for problem, columns in layer_inputs(layer, stop.module, stop.args, stop.kwargs):
            end = start + columns.shape[-1]
            moments.add(problem, columns, None if drift is None else drift[..., start:end])
            start = end
    return moments


def _drift(meeting: _Meeting) -> Tensor | None:
    """Return ``D``, (problems, rows, n): the full-precision output minus the output of the same
    weights on the inputs as they are now. None where the two cannot be compared.
    """
    if meeting.full_output is None:
        return None
    stop = meeting.stop
    full = layer_outputs(stop.module, meeting.full_output)
    now = layer_outputs(stop.module, stop.module.forward(*stop.args, **stop.kwargs))
    if full is None or now is None or full.shape != now.shape:
        return None
    return full - now
