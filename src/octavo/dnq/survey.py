"""The survey of a network: its layers in forward order, and the actions that each may take."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from octavo.activations.quantizer import input_quantizers, quantized_already
from octavo.dnq.settings import FINER_OPTIONS, OPTIONS
from octavo.dnq.space import Action, Space, layer_widths
from octavo.errors import PlanError
from octavo.formats.width import FLOAT, Width, WidthLike, check_bits
from octavo.network.calls import call_alone, few_rows, undisturbed
from octavo.network.forward import (
    Inputs,
    device_of,
    hooked,
    naming_errors,
    observing,
    on_device,
)
from octavo.network.layers import Layer, calling_modules, find_inputs, find_layers
from octavo.network.macs import count_macs
from octavo.network.reach import has_rows
from octavo.network.samples import sample_count

__all__ = ["default_options", "survey"]


def survey(
    model: nn.Module,
    batch: Inputs,
    options: Sequence[WidthLike] | None,
    pins: Mapping[str, WidthLike],
    activations: Sequence[int] | None = None,
    *,
    others: Iterable[Inputs] = (),
) -> Space:
    """Return the space of a network's plans.

    Args:
        model: the trained network.
        batch: inputs that it is called with, on its device.
        options: the widths that layers may get; None for the default of such a network.
        pins: layers whose width is given.
        activations: the bits that the inputs of layers may get, where they can be quantized; None:
            they stay as they are.
        others: further inputs. They are read as far as it takes to reach every layer, since one
            batch need not call every expert of a mixture.

    Raises:
        PlanError: no layer that inputs reach, options that are no bits, an unknown pin, or no
            inputs to quantize.

    """
    layers, macs = _in_forward_order(model, batch, others)
    names = tuple(layer.name for layer in layers)
    options = default_options(layers) if options is None else options
    widths = layer_widths(names, options, pins)
    input_bits: list[Sequence[int | None]] = [(None,)] * len(layers)
    if activations is not None:
        input_bits = _input_bits(model, layers, activations)
    return Space(
        names,
        tuple(map(_actions, widths, input_bits)),
        tuple(layer.weight.numel() for layer in layers),
        tuple(macs[name] for name in names),
    )


def default_options(layers: Iterable[Layer]) -> Sequence[WidthLike]:
    """Return the widths that layers may get if nobody says which: powers of two of 2 to 5 bits or,
    where the network has an embedding, a recurrent layer or an attention, finer codebooks too.
    """
    return FINER_OPTIONS if any(map(_needs_finer, layers)) else OPTIONS


def _needs_finer(layer: Layer) -> bool:
    """Tell whether a layer makes its network one of those for which powers of two are too coarse.
    Most attentions consist of linear layers, so that only their names tell.
    """
    name = layer.name.lower()
    by_name = "attn" in name or "attention" in name
    return by_name or layer.form not in ("product", "transposed")


def _actions(widths: Sequence[Width], input_bits: Sequence[int | None]) -> tuple[Action, ...]:
    """Return each width with each number of bits of the inputs, by rising factor."""
    actions = {Action(width, bits) for width in widths for bits in input_bits}
    return tuple(sorted(actions, key=lambda action: action.size))


def _input_bits(
    model: nn.Module, layers: Sequence[Layer], activations: Sequence[int]
) -> list[Sequence[int | None]]:
    """Return the bits that each layer's inputs may get; 32, for float, where they cannot be
    quantized.

    The inputs of a weight that several modules share stay in float.
    """
    if not activations:
        raise PlanError("activations: expected at least one number of bits, got none")
    for bits in activations:
        check_bits(bits, "activations")
    for name in input_quantizers(model):
        raise quantized_already(name)
    modules, _ = find_inputs(model)
    free = [modules.get(layer.name) is layer.module and len(layer.places) == 1 for layer in layers]
    if not any(free):
        raise PlanError("activations: expected layers whose inputs can be quantized, found none")
    return [activations if is_free else (FLOAT,) for is_free in free]


def _in_forward_order(
    model: nn.Module, batch: Inputs, others: Iterable[Inputs]
) -> tuple[list[Layer], dict[str, int]]:
    """Return the layers in the order in which the inputs reach them, and the multiply-accumulates
    that one input spends on each: one of the batch that reaches the layer first, on average.
    """
    layers, _ = find_layers(model)
    example = few_rows(model, batch, 1)
    # A tensor that the model takes as a whole only is one input, whatever its dimension 0 counts.
    in_rows = example is not batch or not isinstance(batch, Tensor)
    reached: dict[str, Layer] = {}  # by name
    macs = dict.fromkeys((layer.name for layer in layers), 0)
    beyond = itertools.chain([] if example is batch else [batch], others)
    for inputs in itertools.chain([example], beyond):
        if len(reached) == len(layers):
            break
        new, spent = _reached(model, layers, on_device(inputs, device_of(model)))
        samples = (sample_count(inputs) or 1) if in_rows else 1
        for name in new.keys() - reached.keys():
            macs[name] = -(-spent[name] // samples)
        reached |= {name: layer for name, layer in new.items() if name not in reached}
    if not reached:
        raise PlanError(
            f"{type(model).__name__}: expected a model with layers that can be quantized, "
            "found none that inputs reach"
        )
    return list(reached.values()), macs


def _reached(
    model: nn.Module, layers: list[Layer], inputs: Inputs
) -> tuple[dict[str, Layer], dict[str, int]]:
    """Return the layers that inputs reach, in that order, and the multiply-accumulates of each."""
    by_module = calling_modules(model, layers)
    reached: dict[str, Layer] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if has_rows(args, kwargs):
            reached.update({layer.name: layer for layer in by_module[module]})

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in by_module]
    with hooked(hooks), observing(model), naming_errors(model), undisturbed(model):
        macs = count_macs(layers, lambda: call_alone(model, inputs))
    return reached, macs
