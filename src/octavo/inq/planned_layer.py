"""A layer of the plan while INQ freezes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from octavo._seeds import seed_of
from octavo.errors import TrainingError
from octavo.formats.codebook import Codebook
from octavo.inq.cells import priced_codes, priced_edges, worth_of
from octavo.inq.parametrization import FrozenWeights, attach_frozen_weights
from octavo.inq.partition import FreezeOrder, grow, rank
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.network.moments import Moments
from octavo.network.parametrizations import set_trained_weight, trained_weight
from octavo.network.thread_state import without_autocast
from octavo.ptq.gptq import curvature
from octavo.ptq.least_squares import damped, least_squares_target, refit
from octavo.ptq.settings import PtqSettings
from octavo.storage.quantized import Quantized

__all__ = ["LayerState", "PlannedLayer", "restore", "state_of", "tensors_of"]

DAMP = PtqSettings.damp
ROUNDS = 3  # estimates of the bits of codes before the first weight freezes


@dataclass(frozen=True)
class PlannedLayer:
    """A layer of the plan, its codebook, and the parametrization that keeps its frozen weights.

    Attributes:
        number: the position of the layer in the plan, from 0; each has its own random numbers.
        layer: the layer of the model.
        codebook: its levels.
        parametrization: what the network sees of its weight.
        worth: the squared error that a bit is worth, see ``octavo.inq.cells``; 0 if bits cost
            nothing, so that weights take their nearest levels.

    """

    number: int
    layer: Layer
    codebook: Codebook
    parametrization: FrozenWeights
    worth: float = 0.0

    @classmethod
    def start(
        cls,
        number: int,
        layer: Layer,
        codebook: Codebook,
        pruned: Tensor | None,
        rate: float = 0.0,
    ) -> Self:
        """Put the parametrization on a layer; its pruned weights freeze at zero."""
        parametrization = attach_frozen_weights(layer, codebook, priced=rate > 0)
        if pruned is not None:
            parametrization.prune(pruned)
        if not rate:
            return cls(number, layer, codebook, parametrization)
        in_units = (trained_weight(layer) / parametrization.scale)[~parametrization.frozen]
        worth = worth_of(rate, codebook.width, in_units)
        planned = cls(number, layer, codebook, parametrization, worth)
        for _ in range(ROUNDS):  # codes lead to bits, and bits to other codes
            planned.price()
        return planned

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    def generator(self, seed: int, stage: int) -> torch.Generator:
        """Make the source of random numbers of this layer in a stage."""
        return torch.Generator().manual_seed(seed_of(seed, stage, self.number))

    def quantized(self) -> Quantized:
        """Return the quantized tensor, once every weight is frozen."""
        return Quantized.of(self.layer, self.codebook, self.codebook.encode(self._seen()).cpu())

    @torch.no_grad()
    def freeze(
        self,
        portion: float,
        order: FreezeOrder,
        generator: torch.Generator,
        curved: Tensor | None = None,
    ) -> None:
        """Freeze free weights, by their rank in ``order``, until ``portion`` of them is frozen.

        Where bits cost anything, ``curved``, (problems, columns), says what a squared error of
        each column costs the outputs; None: all cost the same.
        """
        _check_weights(self)
        parametrization = self.parametrization
        groups = self.layer.groups
        levels = self.codebook.decode(self._codes(curved)) if self.worth else None
        ranks = rank(self._seen(), self.codebook, order, levels=levels, generator=generator)
        ranks = channels_back(ranks, groups)
        mask = grow(parametrization.frozen, ranks, portion, pruned=parametrization.pruned)
        del ranks, levels  # they are as large as the weight
        parametrization.freeze(channels_back(self._codes(curved), groups), mask)
        set_trained_weight(self.layer, parametrization(trained_weight(self.layer)))
        if self.worth:
            self.price()

    @without_autocast()
    def freeze_and_refit(
        self,
        portions: Sequence[float],
        moments: Moments,
        order: FreezeOrder,
        generator: torch.Generator,
    ) -> None:
        """Freeze up to each of ``portions`` in turn; before the first and after each, refit the
        free weights to the layer's full-precision outputs.
        """
        _check_weights(self)
        finite = moments.hessian.isfinite().all() & moments.drift.isfinite().all()
        _check_finite(self.name, "inputs or outputs", finite)
        hessian = damped(moments.hessian, DAMP)  # (problems, columns, columns), float64
        start = self._seen().reshape(moments.drift.shape)  # (problems, rows, columns)
        target = least_squares_target(start, hessian, moments.drift).float()
        curved = curvature(hessian) if self.worth else None
        hessian = hessian.float()
        self._refit(target, hessian)
        for portion in portions:
            self.freeze(portion, order, generator, curved)
            self._refit(target, hessian)

    @torch.no_grad()
    def _refit(self, target: Tensor, hessian: Tensor) -> None:
        """Change the free weights so that the outputs come near those of ``target``."""
        groups = self.layer.groups
        weight = self._seen()
        free = channels_first(~self.parametrization.frozen, groups).reshape(target.shape)
        fitted = refit(weight.reshape(target.shape).float(), target, hessian, free)
        fitted = channels_back(fitted.view(weight.shape), groups).to(weight)
        set_trained_weight(self.layer, self.parametrization(fitted))

    @torch.no_grad()
    def price(self) -> None:
        """Estimate the bits of each code from the codes that all weights have by now, and move the
        edges between the cells of levels accordingly.
        """
        self.parametrization.move_edges(priced_edges(self.codebook, self._codes(), self.worth))

    def _codes(self, curved: Tensor | None = None) -> Tensor:
        """Return the codes that weights have, or would have if they froze now, with the output
        channels first.
        """
        nearest = self.codebook.encode(self._seen())
        if not self.worth:
            return nearest
        groups = self.layer.groups
        frozen = channels_first(self.parametrization.frozen, groups)
        weight = self.parametrization(trained_weight(self.layer))
        codes = channels_first(self.parametrization.codes(weight), groups)
        codes = torch.where(frozen, nearest, codes)
        if curved is None:
            return codes
        in_units = channels_first(weight / self.parametrization.scale, groups)
        in_units = in_units.reshape(len(curved), -1, curved.shape[1])
        for _ in range(ROUNDS - 1):
            cheaper = priced_codes(in_units, curved, self.codebook, codes, self.worth)
            codes = torch.where(frozen, nearest, cheaper.view(codes.shape))
        return codes

    def _seen(self) -> Tensor:
        """Return the weight as the network sees it, with its output channels first."""
        seen = self.parametrization(trained_weight(self.layer))
        return channels_first(seen, self.layer.groups)


def _check_weights(layer: PlannedLayer) -> None:
    weight = trained_weight(layer.layer)
    finite = weight.isfinite() | layer.parametrization.frozen
    _check_finite(layer.name, "weights", finite)


def _check_finite(name: str, what: str, finite: Tensor) -> None:
    """Raise TrainingError, which names the layer, unless all of ``finite`` is true."""
    if not bool(finite.all()):
        raise TrainingError(
            f"{name}: its {what} became NaN or infinite in retraining; lower the learning rate"
        )


@dataclass(frozen=True, eq=False)
class LayerState:
    """A copy of what INQ changes in a layer.

    Attributes:
        weight: the trained weight.
        frozen: the state dict of the parametrization.

    """

    weight: Tensor
    frozen: dict[str, Tensor]


def state_of(layer: PlannedLayer) -> LayerState:
    """Return a copy of a layer's state; :func:`restore` takes it."""
    frozen = layer.parametrization.state_dict()
    return LayerState(
        trained_weight(layer.layer).clone(),
        {name: tensor.clone() for name, tensor in frozen.items()},
    )


@torch.no_grad()
def restore(layer: PlannedLayer, state: LayerState) -> None:
    """Let a layer go back to an earlier :func:`state_of` it."""
    set_trained_weight(layer.layer, state.weight)
    layer.parametrization.load_state_dict(state.frozen)


def tensors_of(layer: PlannedLayer) -> list[Tensor]:
    """Return all that INQ changes in a layer: the trained weight, and the parametrization's own
    tensors, whose values say which weights are frozen, and where.
    """
    return [trained_weight(layer.layer), *layer.parametrization.state_dict().values()]
