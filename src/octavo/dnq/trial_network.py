"""A network for trials: a copy of the model that shares its tensors and can exchange its layers."""

import functools
from collections.abc import Sequence
from typing import Any

from torch import nn

from octavo.activations.quantizer import InputQuantizer, round_first
from octavo.dnq.candidates import Candidate
from octavo.network.copies import copied
from octavo.network.layers import find_layers

__all__ = ["TrialNetwork"]


class TrialNetwork:
    """A copy of the model whose layers are exchanged for candidates by reference, without copying.

    Everything that is not searched is shared with the model.

    Args:
        model: the trained network; it is left as it was.
        layers: names of the layers that are exchanged.
        rounded: names of those among them whose inputs may be quantized.

    """

    def __init__(self, model: nn.Module, layers: Sequence[str], rounded: Sequence[str]) -> None:
        known = {layer.name: layer for layer in find_layers(model)[0]}
        exchanged = [known[name] for name in layers]
        self._full = [layer.weight.detach() for layer in exchanged]
        self._parameters = [nn.Parameter(full, requires_grad=False) for full in self._full]
        # deepcopy takes from its memo what is shared, and the parameters that are exchanged.
        memo: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
        memo |= {id(buffer): buffer for buffer in model.buffers()}
        for layer, parameter in zip(exchanged, self._parameters, strict=True):
            for module, attribute in layer.places:
                memo[id(module._parameters[attribute])] = parameter
        self.model = copied(model, memo).eval()
        self._layers = layers
        self._quantizers: dict[str, InputQuantizer | None] = dict.fromkeys(rounded)
        for name in rounded:  # by hooks, as all trial networks share the quantizers
            hook = functools.partial(self._round, name)
            self.model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    def put(self, candidates: Sequence[Candidate | None]) -> None:
        """Exchange each layer for a candidate; None stands for full precision."""
        for index, candidate in enumerate(candidates):
            weight = self._full[index] if candidate is None else candidate.weight
            self._parameters[index].data = weight
            name = self._layers[index]
            if name in self._quantizers:
                self._quantizers[name] = None if candidate is None else candidate.quantizer

    def _round(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        quantizer = self._quantizers[name]
        return None if quantizer is None else round_first(quantizer, args, kwargs)
