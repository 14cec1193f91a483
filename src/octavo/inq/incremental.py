"""INQ, incremental network quantization, over the user's own training loop (arXiv 1702.03044,
section 2.2, algorithm 1).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from octavo._seeds import seed_of
from octavo.errors import PlanError, TrainingError
from octavo.formats.codebook import Codebook, Fit, Per
from octavo.formats.registry import codebook_at, fitted_codebook
from octavo.formats.width import Width, WidthLike, write_widths
from octavo.inq.parametrization import FrozenWeights, Masks, hold
from octavo.inq.partition import (
    PORTIONS,
    Order,
    check_portions,
    check_straight_through,
    grow,
    orders_of,
    portions_for,
    score,
)
from octavo.network.calling import Inputs, observing
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.layers import Layer, channels_back, channels_first
from octavo.network.moments import Moments
from octavo.network.parametrizations import release
from octavo.network.thread_state import without_autocast
from octavo.plan import planned_layers
from octavo.pruning.masks import find_pruned, set_to_zero
from octavo.ptq.calibration import calibrate
from octavo.ptq.least_squares import damped, least_squares_target, refit
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import Packed, check_state, pack
from octavo.storage.quantized import Quantized

__all__ = ["Incremental", "Stage"]

DAMP = PtqSettings.damp
NOT_GIVEN = tuple(
    portion for portion in PORTIONS
)  # an object of its own: what is given is another, equal or not
PIECES = 8  # in which a portion freezes where it is made up for


@dataclass(frozen=True)
class Stage:
    """One step of INQ: a portion was just frozen; retrain the rest, then ask for the next.

    Attributes:
        index: 0 for the first.
        portion: share of each layer's weights that is frozen now; pruned ones, frozen at zero from
            the start, do not count.
        last: whether every weight is frozen; norms and biases may still train.
        frozen: layer name to a bool mask, of the weight's shape, of what is frozen.

    """

    index: int
    portion: float
    last: bool
    frozen: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Slot:
    """A planned layer with its codebook and what holds its weights."""

    layer: Layer
    codebook: Codebook
    held: FrozenWeights

    @classmethod
    def of(cls, layer: Layer, codebook: Codebook, pruned: Tensor | None) -> Self:
        """Hold a layer, with what is pruned of it frozen at zero."""
        held = hold(layer, codebook)
        if pruned is not None:
            held.prune(pruned)
        return cls(layer, codebook, held)

    def codes(self) -> Tensor:
        """The codes of the weights as the network sees them, output channels first."""
        return self.codebook.encode(
            channels_first(self.held(self.layer.weight.detach()), self.layer.groups)
        )

    def freeze(self, portion: float, order: Order, generator: torch.Generator) -> None:
        """Freeze free weights, in ``order``, until ``portion`` of the layer is frozen."""
        with torch.no_grad():
            self._check_finite("weights", self.layer.weight.isfinite() | self.held.frozen)
            rows = channels_first(self.held(self.layer.weight), self.layer.groups)
            ranking = channels_back(
                score(rows, self.codebook, order, generator=generator), self.layer.groups
            )
            codes = channels_back(self.codebook.encode(rows), self.layer.groups)
            self.held.freeze(
                codes, grow(self.held.frozen, ranking, portion, pruned=self.held.pruned)
            )
            self.layer.weight.copy_(self.held(self.layer.weight))

    @without_autocast()
    def freeze_and_refit(
        self, portions: Sequence[float], moments: Moments, order: Order, generator: torch.Generator
    ) -> None:
        """Freeze up to each of the portions in turn; before and after, the weights that are free
        make up for the others.
        """
        self._check_finite("weights", self.layer.weight.isfinite() | self.held.frozen)
        self._check_finite(
            "inputs or outputs", moments.hessian.isfinite().all() & moments.drift.isfinite().all()
        )
        hessian, start = (
            damped(moments.hessian, DAMP),
            self._rows(self.held(self.layer.weight.detach()), moments),
        )
        target, hessian = (
            least_squares_target(start, hessian, moments.drift).float(),
            hessian.float(),
        )
        self._refit(moments, target, hessian)
        for portion in portions:
            self.freeze(portion, order, generator)
            self._refit(moments, target, hessian)

    @torch.no_grad()
    def _refit(self, moments: Moments, target: Tensor, hessian: Tensor) -> None:
        rows = self._rows(self.held(self.layer.weight), moments)
        made_up = refit(rows.float(), target, hessian, self._rows(~self.held.frozen, moments))
        first = channels_first(self.layer.weight, self.layer.groups)
        self.layer.weight.copy_(
            self.held(channels_back(made_up.view(first.shape), self.layer.groups).to(first))
        )

    def _check_finite(self, what: str, finite: Tensor) -> None:
        if not bool(finite.all()):
            raise TrainingError(
                f"{self.layer.name}: its {what} became NaN or infinite in retraining; lower the learning rate"
            )

    def _rows(self, values: Tensor, moments: Moments) -> Tensor:
        """(problems, rows, columns), as the moments have them."""
        return channels_first(values, self.layer.groups).reshape(moments.drift.shape)


class Incremental:
    """INQ over your own loop: each step of the iteration freezes a portion of every planned layer,
    then you retrain.

    ::

        incremental = Incremental(model, Plan.uniform(model, 3))
        for stage in incremental:
            if not stage.last:
                retrain(model)
        packed = incremental.finish()

    Any optimizer will do, made before or after; reset its learning rate at each stage, as the paper
    does. The model's parameters stay the same objects; its state dict has the parametrized names
    until ``finish``. Average it by torch's ``AveragedModel`` with ``use_buffers=False``, its
    default, only: frozen weights are marks in buffers, and the mean of two marks is the mark of an
    unrelated level.

    Args:
        model: the trained network; it is changed in place.
        plan: layer name to bits, or to an ``Apot``: a ``Plan`` or a dict. Layers that it does not
            name stay in float.
        portions: accumulated shares of frozen weights, rising to 1. Where none are given and at
            least half of the planned weights are pruned, they are not the default but the paper's
            finer ones (``octavo.inq.partition.SPARSE_PORTIONS``).
        order: which weights freeze first: see ``octavo.inq.partition.score``; one order, or one for
            each portion.
        fit: how n1 is chosen: see ``octavo.formats.powers_of_two.power_of_two``.
        per: one n1 for a ``"layer"`` or for each output ``"channel"``.
        seed: of the random order.
        straight_through: the portion from which on the network sees the weights that are still free
            at their levels too, while their gradients pass straight through to what they were. Then
            the last portions change nothing as they freeze.
        inputs: batches that the model is called with, unlabelled, as for ``calibrate``. With them
            n1 is the closed form's, and as each portion freezes, the weights that stay free make up
            for it: layer by layer, in closed form.
        masks: layer name to mask, false where a weight is pruned; ``{}`` where none is. None, the
            default: every weight that is exactly zero is, but in a layer that is on powers of two
                already. Pruned weights are zero and never move.

    Raises:
        PlanError: an unknown layer, impossible portions, an unknown order; the message names it.

    """

    def __init__(
        self,
        model: nn.Module,
        plan: Mapping[str, WidthLike],
        *,
        portions: tuple[float, ...] = NOT_GIVEN,
        order: Order | Sequence[Order] = "magnitude",
        fit: Fit = "mse",
        per: Per = "channel",
        seed: int = 0,
        straight_through: float = 1.0,
        inputs: Iterable[Inputs] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_state(model)
        planned = planned_layers(model, plan)
        warn_if_mostly_float(model)
        layers = [layer for layer, _ in planned]
        pruned = find_pruned(layers, masks)
        self.portions = portions_for(layers, pruned) if portions is NOT_GIVEN else portions
        check_portions(self.portions)
        check_straight_through(straight_through, self.portions)
        self._orders = orders_of(order, len(self.portions))
        self.model, self.order, self.seed = model, order, seed
        self._settings = {
            "plan": write_widths(plan),
            "portions": tuple(portions),
            "order": order if isinstance(order, str) else self._orders,
            "fit": fit,
            "per": per,
            "seed": seed,
            "straight_through": straight_through,
            "inputs": inputs is not None,
        }
        self._done, self._straight_through = 0, straight_through
        self._inputs = None if inputs is None else list(inputs)
        set_to_zero(layers, pruned)
        books = _codebooks(model, planned, self._inputs, fit, per)
        self._slots = [
            _Slot.of(layer, book, pruned.get(layer.name))
            for layer, book in zip(layers, books, strict=True)
        ]

    def __iter__(self) -> Iterator[Stage]:
        """Freeze the next portion and yield its stage, from where the last iteration or
        ``load_state_dict`` left off.
        """
        while self._done < len(self.portions):
            self._see_through(0)
            self._freeze(self._done)
            self._done += 1
            self._see_through(self._done)
            frozen = Masks({slot.layer.name: slot.held.snapshot() for slot in self._slots})
            yield Stage(
                self._done - 1,
                self.portions[self._done - 1],
                self._done == len(self.portions),
                frozen,
            )

    def _freeze(self, index: int) -> None:
        """Freeze the portion of a stage in every layer."""
        numbers = {slot.layer.name: number for number, slot in enumerate(self._slots)}

        def generator(slot: _Slot) -> torch.Generator:
            return torch.Generator().manual_seed(
                seed_of(self.seed, index, numbers[slot.layer.name])
            )

        seen = self._sees_through(
            index
        )  # the network knows what freezes now: there is nothing to make up for
        met = (
            set[str]() if self._inputs is None or seen else self._freeze_and_refit(index, generator)
        )
        for slot in self._slots:
            if (
                slot.layer.name not in met
                # without inputs, all of them; else what no input reaches now: nothing to make up for
            ):
                slot.freeze(self.portions[index], self._orders[index], generator(slot))

    def _sees_through(self, done: int) -> bool:
        """Whether the network sees free weights at their levels after so many portions."""
        return done > 0 and self._straight_through <= self.portions[done - 1] < 1

    def _see_through(self, done: int) -> None:
        """Let the network see free weights as it shall after so many portions."""
        for slot in self._slots:
            slot.held.straight_through = self._sees_through(done)

    def _freeze_and_refit(
        self, index: int, generator: Callable[[_Slot], torch.Generator]
    ) -> set[str]:
        """Freeze the portion, piece by piece, in every layer that the inputs reach: the names of
        these.
        """
        before, portion = (0.0, *self.portions)[index : index + 2]
        pieces = [before + (portion - before) * piece / PIECES for piece in range(1, PIECES)]
        slots, met = {slot.layer.name: slot for slot in self._slots}, set[str]()

        def freeze(layer: Layer, moments: Moments) -> None:
            slot = slots[layer.name]
            slot.freeze_and_refit([*pieces, portion], moments, self._orders[index], generator(slot))
            layer.weight.copy_(slot.layer.weight)
            met.add(layer.name)

        (full, _), (quantized, layers) = self._plain(), self._plain()
        with observing(full), observing(quantized):
            freeze_sequentially(full, quantized, layers, self._inputs or (), freeze)
        return met

    def _plain(self) -> tuple[nn.Module, list[Layer]]:
        """A copy of the network as it is now, and its layers. Nothing holds them: recurrent ones
        read weights ahead of a call.
        """
        model, layers = copy.deepcopy((self.model, [slot.layer for slot in self._slots]))
        release(layers)
        return model, layers

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume between stages, the model's own state dict included. Take it
        after retraining.
        """
        tops = {slot.layer.name: slot.codebook.max_exponent for slot in self._slots}
        state = {
            "done": self._done,
            "settings": self._settings,
            "tops": tops,
            "model": self.model.state_dict(),
        }
        return state | {
            "portions": tuple(self.portions),
            "pruned": {slot.layer.name: slot.held.pruned for slot in self._slots},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: the model and the stages take up where ``state`` was taken.

        Raises:
            PlanError: the state comes from other settings; the message names the first that
                differs.

        """
        if not {"done", "settings", "tops", "model"} <= set(state):
            raise PlanError(
                f"expected what state_dict() returned, got the keys {', '.join(map(str, state)) or 'none'}"
            )
        for key, mine in self._settings.items():
            if (theirs := state["settings"].get(key)) != mine:
                raise PlanError(
                    f"{key}: expected the state of a run with {mine!r}, got one with {theirs!r}"
                )
        self.model.load_state_dict(state["model"])
        self._done, self.portions = state["done"], tuple(state.get("portions", self.portions))
        self._orders = orders_of(self.order, len(self.portions))
        for slot in self._slots:
            slot.held.pruned = state.get("pruned", {}).get(slot.layer.name, 0)
        self._slots = [
            _Slot(s.layer, codebook_at(s.codebook.width, state["tops"][s.layer.name]), s.held)
            for s in self._slots
        ]
        self._see_through(self._done)

    def finish(self) -> Packed:
        """Fold the model back to plain modules and return the quantized network.

        Raises:
            PlanError: a weight is still free (the message names its layer), or the run was finished
                before.

        """
        if not self._slots:
            raise PlanError("finish: expected a run that goes on, got one that was finished before")
        for slot in self._slots:
            free = int((~slot.held.frozen).sum())
            if free:
                raise PlanError(
                    f"{slot.layer.name}: expected every weight frozen, got {free} of {slot.layer.weight.numel()} still free"
                )
        quantized = {}
        for slot in self._slots:
            quantized[slot.layer.name] = Quantized.of(slot.layer, slot.codebook, slot.codes().cpu())
        release(slot.layer for slot in self._slots)
        self._slots = []
        return pack(self.model, quantized)


def _codebooks(
    model: nn.Module,
    planned: Sequence[tuple[Layer, Width]],
    inputs: list[Inputs] | None,
    fit: Fit,
    per: Per,
) -> list[Codebook]:
    """The levels of each layer: by its weights alone or, with inputs, the closed form's."""
    if inputs is None:
        rows = [
            (layer, channels_first(layer.weight, layer.groups), bits) for layer, bits in planned
        ]
        return [
            fitted_codebook(weight, bits, fit=fit, per=per, name=layer.name)
            for layer, weight, bits in rows
        ]
    packed = calibrate(
        model, {layer.name: bits for layer, bits in planned}, inputs, fit=fit, per=per
    )
    return [packed.layers[layer.name].codebook for layer, _ in planned]
