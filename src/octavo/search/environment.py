"""The search's environment: what a choice of bits does to the network's outputs, without retraining.

Every (layer, bits) pair is quantized once, in closed form, from full-precision inputs, and kept; a trial puts the chosen weights
in place, by reference, and runs the calibration inputs once. No choice is scored twice. (DNQ, arXiv 1812.02375, published
neither its environment nor its reward: this one is ours.)
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import coding
from octavo.calling import Inputs, call, device_of, observing, on_device
from octavo.container import Quantized
from octavo.errors import PlanError
from octavo.layers import Layer, find_layers
from octavo.moments import Moments
from octavo.oneshot import float_moments
from octavo.search.output_sum import OutputSum
from octavo.search.space import Choice
from octavo.solve import Settings, solve

__all__ = ["Environment", "Partial", "Score"]

NUMBERS = 1 << 24  # that a model of the environment keeps

Partial: TypeAlias = Sequence[int | None]  # a choice in which some layers stay in full precision
Score: TypeAlias = Callable[[nn.Module], float]


@dataclass(frozen=True)
class _Option:
    weight: Tensor
    stored_bits: float  # at the entropy of its codes


class Environment:
    """Scores choices of bits, higher is better.

    Attributes:
        explains: whether the score is the divergence of outputs, so that ``output_sum`` can model it.

    Args:
        model: the trained network; it is left as it was.
        layers: names of the layers that are searched, in forward order.
        inputs: calibration batches.
        options: the bits of each layer that may be asked for.
        score: what to score a model by; None: minus the KL divergence from its full-precision outputs, the mean over rows.
        workers: how many choices are scored at a time, each by a copy of the model that shares all its weights.

    Raises:
        PlanError: the inputs do not fit, a layer is not reached, or outputs that are no logits have no score.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        inputs: Iterable[Inputs],
        options: Sequence[Sequence[int]],
        *,
        score: Score | None = None,
        workers: int = 1,
    ) -> None:
        self._inputs = [on_device(batch, device_of(model)) for batch in inputs]
        known = {layer.name: layer for layer in find_layers(model)[0]}
        moments = float_moments(model, self._inputs, [known[name] for name in layers])
        self._cache = [
            {bits: _option(known[name], moments[name], bits) for bits in bits_of_layer}
            for name, bits_of_layer in zip(layers, options, strict=True)
        ]
        self._score = score or self._divergence
        self._workers = [_Worker(model, layers) for _ in range(workers)]
        self._reference: list[Tensor] = []
        self.explains = score is None
        if self.explains:
            with observing(model):
                self._reference = [_log_probabilities(call(model, batch)) for batch in self._inputs]

    def scores(self, choices: Sequence[Partial]) -> list[float]:
        """The score of each choice; None in place of bits leaves that layer in full precision."""
        with ThreadPoolExecutor(len(self._workers)) as pool:
            shares = [(worker, choices[i :: len(self._workers)]) for i, worker in enumerate(self._workers)]
            done = list(pool.map(lambda share: [self._one(share[0], choice) for choice in share[1]], shares))
        return [done[i % len(done)][i // len(done)] for i in range(len(choices))]

    def stored_bits(self, choice: Choice) -> float:
        """Bits that the codes of a choice take at their entropy."""
        return sum(self._cache[layer][bits].stored_bits for layer, bits in enumerate(choice))

    def output_sum(self) -> OutputSum:
        """A model of this environment, from the outputs of the choices in which a single layer is quantized."""
        pairs = [(layer, bits) for layer, weights in enumerate(self._cache) for bits in weights]
        rows = max(1, NUMBERS // (len(pairs) * self._reference[0].shape[1]))
        full = self._outputs([None] * len(self._cache), rows)
        changes = {}
        for layer, bits in pairs:
            alone = [bits if at == layer else None for at in range(len(self._cache))]
            changes[layer, bits] = (self._outputs(alone, rows) - full).nan_to_num(0.0)  # of classes ruled out
        return OutputSum(full, changes)

    def _outputs(self, choice: Partial, rows: int) -> Tensor:
        """The first rows of the log probabilities that a choice gives."""
        worker, found, missing = self._workers[0], list[Tensor](), rows
        self._dress(worker, choice)
        with observing(worker.model):
            for batch in self._inputs:
                if missing > 0:
                    found.append(_log_probabilities(call(worker.model, batch))[:missing])
                    missing -= len(found[-1])
        return torch.cat(found)

    def _dress(self, worker: "_Worker", choice: Partial) -> None:
        worker.wear([None if bits is None else self._cache[layer][bits].weight for layer, bits in enumerate(choice)])

    def _one(self, worker: "_Worker", choice: Partial) -> float:
        self._dress(worker, choice)
        with torch.no_grad():
            score = float(self._score(worker.model))
        if not math.isfinite(score):
            raise PlanError(f"score: expected a finite number, got {score} for the bits {list(choice)}")
        return score

    def _divergence(self, model: nn.Module) -> float:
        total, rows = 0.0, 0
        for batch, target in zip(self._inputs, self._reference, strict=True):
            own = _log_probabilities(call(model, batch))
            divergence = F.kl_div(own, target, reduction="none", log_target=True)
            total += float(divergence.masked_fill(target == -math.inf, 0).sum())  # classes ruled out count nothing
            rows += len(own)
        return -total / rows


class _Worker:
    """A copy of the model that shares its tensors, whose searched weights can be exchanged."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        shared: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        known = {layer.name: layer.weight for layer in find_layers(model)[0]}
        own = {id(known[name]): nn.Parameter(known[name].detach(), requires_grad=False) for name in layers}
        self.model = copy.deepcopy(model, shared | own).eval()
        self._weights = [own[id(known[name])] for name in layers]
        self._full = [weight.data for weight in self._weights]

    def wear(self, weights: Sequence[Tensor | None]) -> None:
        """Put weights in place, by reference; None stands for the full-precision one."""
        for place, full, weight in zip(self._weights, self._full, weights, strict=True):
            place.data = full if weight is None else weight


def _option(layer: Layer, moments: Moments, bits: int) -> _Option:
    solution = solve(layer, moments, bits, Settings())
    quantized = Quantized.of(layer, solution.codebook, solution.codes.cpu())
    weight = torch.empty_like(layer.weight, requires_grad=False).copy_(quantized.weight())
    return _Option(weight, 8 * coding.entropy_bytes(quantized.codes, bits))


def _log_probabilities(outputs: Any) -> Tensor:
    """Rows of log probabilities from logits (n, ..., classes)."""
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or outputs.shape[-1] < 2:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PlanError(f"expected the model to return logits, rows of two classes or more, got {got}; give a score of your own")
    return F.log_softmax(outputs.float().flatten(0, -2), -1)
