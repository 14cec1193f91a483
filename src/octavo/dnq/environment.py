"""The search's environment: what a choice of bits does to the network's outputs, without
retraining.

Every (layer, bits) pair is quantized once, in closed form, from full-precision inputs, and kept; a
    trial puts the chosen weights
in place, by reference, with what rounds the layers' inputs where that is searched for too, and runs
the calibration inputs once. No choice is scored twice. (DNQ, arXiv 1812.02375, published neither
its environment nor its reward: this one is ours.)
"""

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from octavo.activations.quantization import fitted_quantizers
from octavo.activations.quantizer import InputQuantizer, round_first
from octavo.dnq.output_sum import OutputSum
from octavo.dnq.space import Choice, single_layers
from octavo.errors import PlanError
from octavo.formats.width import FLOAT, input_bits, weight_bits, width_index
from octavo.network.calling import Inputs, call, device_of, observing
from octavo.network.layers import Layer, find_layers
from octavo.network.moments import Moments
from octavo.network.outputs import Part, alike, described, parts_of
from octavo.ptq.absorption import absorbing_norms, rescaled
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.layer_solver import solve
from octavo.ptq.settings import PtqSettings
from octavo.storage.coding import grouped as coding
from octavo.storage.quantized import Quantized

__all__ = ["Environment", "Partial", "Score"]

NUMBERS = 1 << 24  # that a model of the environment keeps

Partial: TypeAlias = Sequence[int | None]  # a choice in which some layers stay in full precision
Score: TypeAlias = Callable[[nn.Module], float]


@dataclass(frozen=True)
class _Option:
    weight: Tensor
    stored_bits: float  # at the entropy of its codes
    rounding: InputQuantizer | None = None  # of the layer's inputs; None leaves them as they are


class Environment:
    """Scores choices of bits, higher is better.

    Args:
        model: the trained network; it is left as it was.
        layers: names of the layers that are searched, in forward order.
        inputs: calibration batches, on the model's device.
        options: the bits of each layer that may be asked for.
        score: what to score a model by; None: minus what its outputs lose of full precision, the KL
            divergence of logits (the mean over rows) and the relative squared error of all else:
            see ``octavo.network.outputs``.
        absorb: give channels ahead of a batch norm a scale of their own, as ``calibrate`` does.
        workers: how many choices are scored at a time, each by a copy of the model that shares all
            its weights.

    Raises:
        PlanError: the inputs do not fit, a layer is not reached, or the model returns nothing to
            compare.

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
        absorb: bool = False,
    ) -> None:
        self._inputs = list(inputs)
        known = {layer.name: layer for layer in find_layers(model)[0]}
        moments = float_moments(model, self._inputs, [known[name] for name in layers])
        norms = _norms(model, [known[name] for name in layers], self._inputs[0]) if absorb else {}
        roundings = _roundings(model, self._inputs, dict(zip(layers, options, strict=True)))
        self._cache = [
            _options(
                known[name],
                moments[name],
                bits_of_layer,
                roundings.get(name, {}),
                scaled=name in norms,
            )
            for name, bits_of_layer in zip(layers, options, strict=True)
        ]
        self._score = score
        self._model, self._layers, self._rounded = model, layers, tuple(roundings)
        self._workers = [_Worker(model, layers, self._rounded) for _ in range(workers)]
        self._reference: list[list[Part]] = []
        self._units: list[float] = []
        self._alone: dict[
            tuple[int | None, ...], list[Tensor]
        ] = {}  # by choices of a single layer, rows of their outputs
        if score is None:
            with observing(model):
                self._reference = [_parts(call(model, batch), batch) for batch in self._inputs]
            self._units = [
                sum(part.unit() for part in parts) for parts in zip(*self._reference, strict=True)
            ]
            numbers = sum(len(bits) for bits in options) * sum(
                part.rows.shape[1] for part in self._reference[0]
            )
            self._rows = max(1, NUMBERS // numbers)

    def scores(self, choices: Sequence[Partial]) -> list[float]:
        """The score of each choice; None in place of bits leaves that layer in full precision."""
        alike = sorted(
            range(len(choices)),
            key=lambda at: [0 if bits is None else width_index(bits) for bits in choices[at]],
        )  # neighbours begin alike
        share = math.ceil(len(choices) / len(self._workers)) or 1
        found = dict[int, float]()

        def work(worker: _Worker, mine: Sequence[int]) -> dict[int, float]:
            done = dict[int, float]()
            for at, then in itertools.zip_longest(mine, mine[1:]):
                following = () if then is None else choices[then]
                done[at] = self._one(worker, choices[at], _common(choices[at], following))
            return done

        with ThreadPoolExecutor(len(self._workers)) as pool, observing(self._model):
            for done in pool.map(
                work, self._workers, [alike[i * share :][:share] for i in range(len(self._workers))]
            ):
                found |= done
        return [found[at] for at in range(len(choices))]

    def stored_bits(self, choice: Choice) -> float:
        """Bits that the codes of a choice take at their entropy."""
        return sum(self._cache[layer][bits].stored_bits for layer, bits in enumerate(choice))

    def network(self, choice: Partial) -> nn.Module:
        """The network as the trial of a choice has it; all that is not searched is shared with the
        original.
        """
        worker = _Worker(self._model, self._layers, self._rounded)
        worker.wear(self._chosen(choice))
        return worker.model

    def output_sum(self) -> OutputSum | None:
        """A model of this environment, from the outputs that single layers alone give; None where
        the score is not of outputs.
        """
        if self._score is not None:
            return None
        alone = single_layers([list(options) for options in self._cache])
        self.scores(
            [choice for choice in alone.values() if choice not in self._alone]
        )  # known from an earlier search
        first = [
            dataclasses.replace(parts[0], rows=self._first(parts))
            for parts in zip(*self._reference, strict=True)
        ]
        return OutputSum(first, {pair: self._alone[choice] for pair, choice in alone.items()})

    @torch.no_grad()  # of this thread
    def _one(self, worker: "_Worker", choice: Partial, common: int) -> float:
        """The score of a choice; the worker's next one begins with so many layers in common."""
        if self._score is None:
            score = self._divergence(worker, choice, common)
        else:
            worker.wear(self._chosen(choice))
            score = float(self._score(worker.model))
        if not math.isfinite(score):
            raise PlanError(
                f"score: expected a finite number, got {score} for the bits {list(choice)}"
            )
        return score

    def _divergence(self, worker: "_Worker", choice: Partial, common: int) -> float:
        outputs, lost = (
            worker.outputs(self._chosen(choice), self._inputs, common),
            [0.0] * len(self._units),
        )
        for own, full in zip(outputs, self._reference, strict=True):
            if not alike(own, full):
                raise PlanError(
                    f"expected outputs of the same form whatever the weights, got {described(own)} where full precision gave "
                    f"{described(full)}; give a score of your own"
                )
            lost = [
                sum_ + float(one.lost(other))
                for sum_, one, other in zip(lost, own, full, strict=True)
            ]
        if sum(bits is not None for bits in choice) == 1:
            self._alone[tuple(choice)] = [
                self._first(parts) for parts in zip(*outputs, strict=True)
            ]
        return -sum(sum_ / unit for sum_, unit in zip(lost, self._units, strict=True))

    def _first(self, parts: Sequence[Part]) -> Tensor:
        """The first rows of a part, over all batches."""
        return torch.cat([part.rows for part in parts])[: self._rows].clone()

    def _chosen(self, choice: Partial) -> list[_Option | None]:
        return [
            None if bits is None else self._cache[layer][bits] for layer, bits in enumerate(choice)
        ]


class _Worker:
    """A copy of the model that shares its tensors, whose searched weights, and what rounds inputs,
    can be exchanged.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], rounded: Collection[str] = ()
    ) -> None:
        shared: dict[int, Any] = {
            id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]
        }
        known = {layer.name: layer.weight for layer in find_layers(model)[0]}
        own = {
            id(known[name]): nn.Parameter(known[name].detach(), requires_grad=False)
            for name in layers
        }
        self.model = copy.deepcopy(model, shared | own).eval()
        self._places = [own[id(known[name])] for name in layers]
        self._full = [place.data for place in self._places]
        self._worn, self._layers = list[tuple[Tensor, InputQuantizer | None]](), layers
        self._rounding: dict[str, InputQuantizer | None] = dict.fromkeys(rounded)
        # no submodules: the workers share the quantizers
        for name in rounded:
            hook = functools.partial(self._round, name)
            self.model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    def _round(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        quantizer = self._rounding[name]
        return None if quantizer is None else round_first(quantizer, args, kwargs)

    def wear(self, options: Sequence[_Option | None]) -> int:
        """Put options in place, by reference, None for full precision. Returns how many of the
        first were there already.
        """
        worn = [
            (full, None) if option is None else (option.weight, option.rounding)
            for full, option in zip(self._full, options, strict=True)
        ]
        for place, name, (weight, rounding) in zip(self._places, self._layers, worn, strict=True):
            place.data = weight
            if name in self._rounding:
                self._rounding[name] = rounding
        unchanged, self._worn = _common(_identities(worn), _identities(self._worn)), worn
        return unchanged

    def outputs(
        self, options: Sequence[_Option | None], batches: Sequence[Inputs], common: int
    ) -> list[list[Part]]:
        """What each batch gives; the batches are always the same, so many of the first options the
        next time too.
        """
        self.wear(options)
        return [_parts(call(self.model, batch), batch) for batch in batches]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """With how many items both begin."""
    return sum(
        1
        for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    )


def _norms(model: nn.Module, layers: Sequence[Layer], batch: Inputs) -> dict[str, nn.Module]:
    with observing(model):
        return absorbing_norms(model, layers, batch)


def _identities(worn: Iterable[tuple[Tensor, InputQuantizer | None]]) -> list[tuple[int, int]]:
    return [(id(weight), id(rounding)) for weight, rounding in worn]


def _roundings(
    model: nn.Module, inputs: Sequence[Inputs], options: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, InputQuantizer]]:
    """What rounds the inputs of layers, by their names and the bits that they may get."""
    wanted = {name: sorted(set(map(input_bits, own)) - {FLOAT}) for name, own in options.items()}
    wanted = {name: bits for name, bits in wanted.items() if bits}
    found = fitted_quantizers(model, inputs, wanted) if wanted else {}
    device = device_of(model)
    return {
        name: {bits: quantizer.to(device) for bits, quantizer in own.items()}
        for name, own in found.items()
    }


def _options(
    layer: Layer,
    moments: Moments,
    options: Sequence[int],
    roundings: Mapping[int, InputQuantizer],
    *,
    scaled: bool,
) -> dict[int, _Option]:
    """Each with its weights, which are solved for once for all bits of inputs."""
    solved = {
        bits: _option(layer, moments, bits, scaled=scaled)
        for bits in dict.fromkeys(map(weight_bits, options))
    }
    return {
        option: replace(solved[weight_bits(option)], rounding=roundings.get(input_bits(option)))
        for option in options
    }


def _option(layer: Layer, moments: Moments, bits: int, *, scaled: bool) -> _Option:
    solution = solve(layer, moments, bits, PtqSettings(), scaled=scaled)
    quantized = Quantized.of(layer, solution.codebook, solution.codes.cpu())
    effective = rescaled(
        layer, quantized.weight(), solution.factor
    )  # the norm behind it stays as it is
    weight = torch.empty_like(layer.weight, requires_grad=False).copy_(effective)
    return _Option(weight, 8 * coding.entropy_bytes(quantized.codes, bits))


def _parts(outputs: Any, batch: Inputs) -> list[Part]:
    if parts := parts_of(outputs, batch):
        return parts
    raise PlanError(
        f"expected the model to return floating-point tensors, got {type(outputs).__name__}; give a score of your own"
    )
