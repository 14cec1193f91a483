"""Freeze layers in forward order, each from the inputs that it has once the layers ahead of it are
quantized.

For each batch the full-precision and the quantized network run side by side. All passes wait at a
layer until its weight is frozen from what all batches bring there; so nothing runs twice. What
stays in float is fitted on the way: biases, and the scale and shift of batch norms, by least
squares to the outputs that they had in full precision.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.calling import Inputs, call, hooked
from octavo.network.kinds import NORMS, ONE_WEIGHT
from octavo.network.layer_inputs import layer_inputs, layer_outputs
from octavo.network.layers import Layer, channels_first
from octavo.network.moments import Moments
from octavo.network.stepping import Stop, stopping, walk
from octavo.ptq.absorption import rescaled

__all__ = ["Freeze", "count_calls", "freeze_in_forward_order"]

Freeze = Callable[
    [Layer, Moments], Tensor | None
]  # freezes a layer's weight in place; by what its channels were divided


def freeze_in_forward_order(
    model: nn.Module,
    quantized: nn.Module,
    layers: dict[nn.Module, list[Layer]],
    batches: Sequence[Inputs],
    freeze: Freeze,
    *,
    correct: bool,
) -> None:
    """Freeze ``layers`` of ``quantized``, a copy of ``model``, in the order that the inputs reach
    them.

    Args:
        model: in full precision.
        quantized: its weights are changed in place.
        layers: of ``quantized``, by the module whose call shows their inputs; every call of one
            module counts as the first.
        batches: calibration inputs.
        freeze: called once for each layer that is reached.
        correct: whether to fit biases and batch norms too.

    """
    norms = _norms_called_once(quantized, batches[0]) if correct else []
    own = {module: name for name, module in quantized.named_modules()}
    full = dict(model.named_modules())
    partners = {full[own[module]]: module for module in (*layers, *norms)}
    waiting, order = dict(layers), {module: i for i, module in enumerate(quantized.modules())}
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping(before=layers, after=norms))
        stack.enter_context(stopping(before=(), after=partners))
        pairs = [
            _Pair(walk(model, batch), walk(quantized, batch), partners, stack) for batch in batches
        ]
        while moving := [pair for pair in pairs if pair.stop]:
            # Of several places the one that was registered first: from there, passes may still come
            # to the others.
            place = min((pair.place for pair in moving), key=order.__getitem__)
            here = [pair for pair in moving if pair.place is place]
            answers: Sequence[Tensor | None] = [None] * len(here)
            if place in norms:
                answers = _fit_norm(place, here)
                norms.remove(place)  # once: passes that come later must not undo the fit for these
            for layer in waiting.pop(place, ()):
                _freeze(layer, here, freeze, correct=correct)
            for pair, answer in zip(here, answers, strict=True):
                pair.advance(answer)


def count_calls(
    model: nn.Module, modules: Collection[nn.Module], batch: Inputs
) -> Counter[nn.Module]:
    """How often each of the modules is called in one forward pass."""
    counts: Counter[nn.Module] = Counter()
    with hooked(
        module.register_forward_pre_hook(lambda m, _: counts.update([m])) for module in modules
    ):
        call(model, batch)
    return counts


def _norms_called_once(model: nn.Module, batch: Inputs) -> list[nn.Module]:
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.affine]
    return [module for module, count in count_calls(model, norms, batch).items() if count == 1]


class _Pair:
    """The two networks on one batch: where the quantized one stands, and what the other gave
    there.
    """

    def __init__(
        self,
        full: Generator[Stop, Any, None],
        quantized: Generator[Stop, Any, None],
        partners: dict[nn.Module, nn.Module],
        stack: contextlib.ExitStack,
    ) -> None:
        self._full, self._quantized, self._partners = full, quantized, partners
        stack.callback(full.close)
        stack.callback(quantized.close)
        self.advance(None)

    def advance(self, answer: Tensor | None) -> None:
        """Go on to the next stop; ``answer`` replaces the output at this one. At the end, ``stop``
        is None.
        """
        self.stop, full = _next(self._quantized, answer), _next(self._full, None)
        met = (
            full is not None
            and self.stop is not None
            and self._partners[full.module] is self.stop.module
        )
        self.partner: Tensor | None = (
            full.output if met and full is not None else None
        )  # None: they took different paths

    @property
    def place(self) -> nn.Module:
        """The module where the quantized network stands."""
        assert self.stop is not None
        return self.stop.module


def _next(passing: Generator[Stop, Any, None], answer: Tensor | None) -> Stop | None:
    try:
        return passing.send(answer)
    except StopIteration:
        return None


def _freeze(layer: Layer, here: Sequence[_Pair], freeze: Freeze, *, correct: bool) -> None:
    """Freeze a layer at which passes stand, and fit its bias."""
    moments, linear = Moments.of(layer), layer.form in ONE_WEIGHT
    for pair in here:
        stop, seen, drift = pair.stop, 0, None
        if stop is None:
            continue
        if linear and pair.partner is not None:
            drift = _drift(stop, pair.partner)
        for problem, columns in layer_inputs(layer, stop.module, stop.args, stop.kwargs):
            moments.add(
                problem,
                columns,
                None if drift is None else drift[..., seen : seen + columns.shape[-1]],
            )
            seen += columns.shape[-1]
    if not moments.seen:  # called without a row: as good as not reached
        return
    before = channels_first(layer.weight.detach(), layer.groups).clone()
    factor = freeze(layer, moments)
    bias = getattr(layer.module, "bias", None)
    if correct and linear and isinstance(bias, nn.Parameter):
        after = channels_first(rescaled(layer, layer.weight.detach(), factor), layer.groups)
        lost = (before - after).reshape(moments.drift.shape).float()
        mean = (moments.mean_drift + (lost @ moments.mean_input.unsqueeze(2)).squeeze(2)).flatten()
        bias.data += (mean if factor is None else mean / factor).to(bias)


def _drift(stop: Stop, partner: Tensor) -> Tensor | None:
    """What the full-precision output has beyond that of the same weights on the inputs as they are
    now.
    """
    full = layer_outputs(stop.module, partner)
    own = layer_outputs(stop.module, stop.module.forward(*stop.args, **stop.kwargs))
    return None if full is None or own is None or full.shape != own.shape else full - own


def _fit_norm(norm: Any, here: Sequence[_Pair]) -> list[Tensor | None]:
    """Fit a batch norm's scale and shift, channel by channel, to the full-precision outputs; its
    outputs as they are then.
    """
    both = [
        (pair.stop.output, pair.partner) for pair in here if pair.stop and pair.partner is not None
    ]
    if not both:
        return [None] * len(here)
    sums = torch.stack([_channel_sums(own, full) for own, full in both]).sum(0)
    own, full, square, product = sums[1:] / sums[0]
    variance, covariance = square - own**2, product - own * full
    scale = torch.where(variance > 1e-9 * square, covariance / variance, 1)
    shift = full - scale * own
    norm.weight.data.mul_(scale)
    norm.bias.data.mul_(scale).add_(shift)
    return [_affine(pair.stop.output, scale, shift) for pair in here if pair.stop]


def _affine(output: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``output`` scaled and shifted channel by channel, its dimension 1."""
    scale, shift = (
        values.to(output).view(-1, *[1] * (output.dim() - 2)) for values in (scale, shift)
    )
    return output * scale + shift


def _channel_sums(own: Tensor, full: Tensor) -> Tensor:
    """Count, and sums of both outputs, of the first's square and of their product, for each
    channel: (5, channels), float64.
    """
    own, full = (output.transpose(0, 1).flatten(1).double() for output in (own, full))
    count = torch.full_like(own[:, 0], own.shape[1])
    return torch.stack([count, own.sum(1), full.sum(1), own.square().sum(1), (own * full).sum(1)])
