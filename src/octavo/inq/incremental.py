"""INQ, incremental network quantization, over the user's own training loop (arXiv 1702.03044,
section 2.2, algorithm 1).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.errors import PlanError, brief
from octavo.formats.fitting import Fit, Per, read_per
from octavo.formats.registry import with_exponents
from octavo.formats.width import Width, WidthLike, write_widths
from octavo.inq.agreement import (
    agreed,
    check_alike,
    keep_from_broadcasts,
    refit_on_one,
    start_alike,
)
from octavo.inq.partition import (
    ORDER,
    PORTIONS,
    STRAIGHT_THROUGH,
    FreezeOrder,
    check_schedule,
    default_portions,
    order_name,
    orders_of,
)
from octavo.inq.planned_layer import PlannedLayer
from octavo.inq.refitting import Freezing, freeze_and_refit
from octavo.inq.stage import FrozenMasks, Stage
from octavo.inq.starting import choose_starts, started
from octavo.network.distributed import check_not_distributed
from octavo.network.float_share import warn_if_mostly_float
from octavo.network.forward import Inputs, batches_of
from octavo.network.layers import Layer
from octavo.network.parametrizations import release
from octavo.network.pruned import find_pruned, zeroed
from octavo.network.ranks import ALONE, Ranks
from octavo.plan import planned_layers
from octavo.progress import Event, Progress, ProgressLike, showing
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import Packed, check_state, pack

__all__ = ["Incremental", "freeze_and_retrain"]


class Incremental:
    """INQ over your own training loop. Each step of the iteration freezes a portion of every
    planned layer; then you retrain.

    ::

        incremental = Incremental(model, Plan.uniform(model, 3))
        for stage in incremental:
            if not stage.last:
                retrain(model)
        packed = incremental.finish()

    Any optimizer will do, created before or after; reset its learning rate at each stage, as the
    paper does. The model's parameters stay the same objects; its state dict has the parametrized
    names until ``finish``. Average the model only by torch's ``AveragedModel`` with its default,
    ``use_buffers=False``: the levels of frozen weights are in buffers, and the mean of a level and
    of what stood there before is no level.

    On several GPUs, every rank makes an ``Incremental``, wraps the model afterwards (DDP, FSDP2,
    Fabric) and iterates over the stages. All ranks start from the weights of rank 0. Each stage
    checks that they froze the same weights at the same levels.

    Args:
        model: the trained network; it is changed in place.
        plan: layer name to width: a ``Plan`` or a dict. Layers that it does not name stay in
            float.
        portions: accumulated shares of frozen weights, rising to 1. None takes INQ's 0.5, 0.75,
            0.875, 1, or, if at least half of the planned weights are pruned, its finer ones
            (``octavo.inq.partition.SPARSE_PORTIONS``).
        order: the order in which weights freeze: see ``octavo.inq.partition.rank``. One order, or
            one for each portion; a function ``(weight, codebook) -> rank`` is an order too.
        fit: how the largest exponent is chosen: see ``octavo.formats.powers_of_two.power_of_two``.
        per: one largest exponent for the ``"tensor"``, for each output ``"channel"``, or for every
            32 inputs of a channel, ``("group", 32)``.
        seed: the seed of the order ``"random"``.
        straight_through: the portion from which on the network sees the weights that are still free
            at their nearest levels too, while their gradients pass straight through. The last
            portions then change nothing as they freeze.
        inputs: batches that the model is called with, unlabelled, as for ``calibrate``. With them,
            the largest exponents are those of ``calibrate``, and as each portion freezes, the free
            weights are refitted, layer by layer.
        masks: layer name to mask, false where a weight is pruned; ``{}`` if none is. None, the
            default, takes weights that are exactly zero as pruned, as ``calibrate`` does. Pruned
            weights are zero and never move.
        rate: how much a smaller file is worth, as for ``calibrate``: weights freeze at the levels
            of least error and bits, and the network sees these with ``straight_through``. The bits
            are those that the codes of the layer take, estimated anew after each portion: see
            ``octavo.inq.cells``. With ``inputs``, layers whose error does more to the outputs keep
            more of them.
        progress: True shows how far it is. A function is called after each layer that freezes with
            an ``Event`` of the phase ``"freeze"``, which counts the layers of all portions; before
            that, if there are inputs, with those of ``calibrate``.
        distributed: true if the ranks of torch's default process group, if there is one, train one
            network together. With ``inputs``, those of rank 0 count. False: this process trains a
            network of its own.

    Raises:
        PlanError: an unknown layer, impossible portions, an unknown order, which the message
            names; or a model that ``DistributedDataParallel`` or ``fully_shard`` wraps already.
        TrainingError: the ranks differ; the message names one that does, and in what.

    """

    def __init__(
        self,
        model: nn.Module,
        plan: Mapping[str, WidthLike],
        *,
        portions: tuple[float, ...] | None = None,
        order: FreezeOrder | Sequence[FreezeOrder] = ORDER,
        fit: Fit = PtqSettings.fit,
        per: Per = PtqSettings.per,
        seed: int = 0,
        straight_through: float = STRAIGHT_THROUGH,
        inputs: Iterable[Inputs] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        rate: float = PtqSettings.rate,
        progress: ProgressLike = None,
        distributed: bool = True,
    ) -> None:
        check_not_distributed(model, "Incremental(model, ...)")
        self._ranks = Ranks.of_process() if distributed else ALONE
        planned = _planned(model, plan)
        layers = [layer for layer, _ in planned]
        of_ptq = PtqSettings(fit=fit, per=read_per(per, layers[0].name), rate=rate, masks=masks)
        start_alike(self._ranks, model)
        pruned = find_pruned(layers, masks)
        self.model = model
        self.portions = default_portions(layers, pruned) if portions is None else portions
        self.order = order
        self.seed = seed
        check_schedule(self.portions, straight_through)
        self._orders = orders_of(order, len(self.portions))
        self._straight_through = straight_through
        self._inputs = None if inputs is None else list(batches_of(inputs))
        self._progress = progress
        self._done = 0  # portions that are frozen
        self._settings = agreed(self._ranks, _described(self, planned, portions, of_ptq))
        choose = partial(choose_starts, model, planned, self._inputs, of_ptq, progress)
        with zeroed(layers, pruned):
            starts = self._ranks.once(choose)
        self._layers = started(layers, starts, pruned)
        keep_from_broadcasts(self._ranks, model, self._layers)

    def __iter__(self) -> Iterator[Stage]:
        """Freeze the next portion and yield its stage, from where the last iteration or
        ``load_state_dict`` left off.
        """
        while self._done < len(self.portions):
            self._show_levels(0)  # freezing starts from the trained values
            with showing(self._progress) as callback:
                self._freeze(self._done, callback)
            self._done += 1
            self._show_levels(self._done)
            check_alike(self._ranks, self._layers, f"stage {self._done}")
            yield Stage(
                index=self._done - 1,
                portion=self.portions[self._done - 1],
                last=self._done == len(self.portions),
                frozen=FrozenMasks(
                    {layer.name: layer.parametrization.frozen for layer in self._layers}
                ),
            )

    def _freeze(self, stage: int, progress: Progress) -> None:
        """Freeze the portion of a stage in every layer."""
        refitted: set[str] = set()
        # A network that sees its free weights at their levels does not change when they freeze.
        if self._inputs is not None and not self._sees_levels(stage):
            refit = partial(self._refit, stage, self._inputs, progress)
            refitted = refit_on_one(self._ranks, self._layers, refit)
        # The others: all of them without inputs, else those that no input reaches now.
        others = [layer for layer in self._layers if layer.name not in refitted]
        for count, layer in enumerate(others, len(refitted) + 1):
            generator = layer.generator(self.seed, stage)
            layer.freeze(self.portions[stage], self._orders[stage], generator)
            progress(self._event(stage, count, layer.name))

    def _refit(self, stage: int, inputs: list[Inputs], progress: Progress) -> set[str]:
        """Freeze the portion of a stage in every layer that the inputs reach, and refit the free
        weights; return the names of these layers.
        """
        earlier = self.portions[stage - 1] if stage else 0.0
        freezing = Freezing(stage, earlier, self.portions[stage], self._orders[stage], self.seed)

        def frozen(count: int, name: str) -> None:
            progress(self._event(stage, count, name))

        return freeze_and_refit(self.model, self._layers, inputs, freezing, frozen)

    def _sees_levels(self, done: int) -> bool:
        """Tell if the network sees free weights at their levels after so many portions."""
        return done > 0 and self._straight_through <= self.portions[done - 1] < 1

    def _show_levels(self, done: int) -> None:
        """Let the network see its free weights as it shall after so many portions."""
        for layer in self._layers:
            layer.parametrization.straight_through = self._sees_levels(done)

    def _event(self, stage: int, count: int, name: str) -> Event:
        """Return the event that ``count`` layers have frozen a stage's portion, ``name`` last."""
        layers = len(self._layers)
        message = f"{name}: {100 * self.portions[stage]:g} % frozen"
        total = layers * len(self.portions)
        return Event("freeze", stage * layers + count, total, message)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume between stages, the model's state dict included. Take
        it after retraining.
        """
        worth = {layer.name: layer.worth for layer in self._layers if layer.worth}
        return {  # "tops" is an old word for the exponents; the keys stay, so that old states load
            "done": self._done,
            "settings": self._settings,
            "tops": {layer.name: layer.codebook.max_exponent for layer in self._layers},
            "model": self.model.state_dict(),
            "portions": tuple(self.portions),
            "pruned": {layer.name: layer.parametrization.pruned for layer in self._layers},
            **({"worth": worth} if worth else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the model and the stages where ``state`` was taken.

        Raises:
            PlanError: the state comes from other settings, or is damaged; the message names what
                differs.

        """
        if not {"done", "settings", "tops", "model"} <= set(state):
            got = ", ".join(map(str, state)) or "none"
            raise PlanError(f"expected what state_dict() returned, got the keys {got}")
        settings = dict(state["settings"])
        if settings.get("per") == "layer":  # an old word for it
            settings["per"] = "tensor"
        settings.setdefault("rate", PtqSettings.rate)  # earlier versions had none
        for key, expected in self._settings.items():
            saved = settings.get(key)
            if saved != expected:
                raise PlanError(
                    f"{key}: expected the state of a run with {expected!r}, got one with {saved!r}"
                )
        # States of the first versions lack the two keys: their networks were not pruned.
        portions = tuple(state.get("portions", self.portions))
        check_schedule(portions, self._straight_through)
        _check_saved(state, portions, self._layers)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:  # torch's, whose first line has the names
            raise PlanError(f"model: {brief(error)}") from error
        self._done = state["done"]
        self.portions = portions
        pruned = state.get("pruned", {})
        self._orders = orders_of(self.order, len(self.portions))
        for layer in self._layers:
            layer.parametrization.pruned = pruned.get(layer.name, 0)
        worth = state.get("worth", {})
        self._layers = [
            replace(
                layer,
                codebook=with_exponents(layer.codebook, state["tops"][layer.name]),
                worth=worth.get(layer.name, 0.0),
            )
            for layer in self._layers
        ]
        self._show_levels(self._done)
        check_alike(self._ranks, self._layers, f"the state after stage {self._done}")

    def finish(self) -> Packed:
        """Fold the model back to plain modules and return the quantized network.

        Raises:
            PlanError: a weight is still free (the message names its layer), or the run was finished
                before.

        """
        if not self._layers:
            raise PlanError("finish: expected a run that goes on, got one that was finished before")
        for layer in self._layers:
            free = int((~layer.parametrization.frozen).count_nonzero())
            if free:
                weights = layer.layer.weight.numel()
                raise PlanError(
                    f"{layer.name}: expected every weight frozen, got {free} of {weights} still "
                    "free; go on with the iteration before finish()"
                )
        quantized = {layer.name: layer.quantized() for layer in self._layers}
        release(layer.layer for layer in self._layers)
        self._layers = []
        self._ranks.share(self.model.buffers())  # batch norms have seen other batches elsewhere
        return pack(self.model, quantized)


def freeze_and_retrain(incremental: Incremental, retrain: Callable[[nn.Module], object]) -> Packed:
    """Freeze a network portion by portion, retrain it after each one but the last, and pack it."""
    for stage in incremental:
        if not stage.last:
            retrain(incremental.model)
    return incremental.finish()


def _planned(model: nn.Module, plan: Mapping[str, WidthLike]) -> list[tuple[Layer, Width]]:
    """Find the layers of a plan and their widths, after a check that a file can store the model."""
    check_state(model)
    planned = planned_layers(model, plan)
    warn_if_mostly_float(model)
    return planned


def _check_saved(
    state: Mapping[str, Any], portions: Sequence[float], layers: Iterable[PlannedLayer]
) -> None:
    """Raise PlanError unless a state has a number of stages, and the exponents of each layer."""
    done = state["done"]
    if isinstance(done, bool) or not isinstance(done, int) or not 0 <= done <= len(portions):
        raise PlanError(f"done: expected a number from 0 to {len(portions)}, got {done!r}")
    for layer in layers:
        own = layer.codebook.max_exponent
        saved = state["tops"].get(layer.name)
        if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (own.shape, own.dtype):
            raise PlanError(
                f"{layer.name}: expected exponents of shape {tuple(own.shape)} and type "
                f"{own.dtype}, got {getattr(saved, 'shape', None)} and "
                f"{getattr(saved, 'dtype', type(saved).__name__)}"
            )


def _described(
    incremental: Incremental,
    planned: Iterable[tuple[Layer, Width]],
    portions: tuple[float, ...] | None,
    of_ptq: PtqSettings,
) -> dict[str, Any]:
    """Describe settings for a saved state, which is compared with the run that loads it.

    If no portions are given, INQ's usual ones stand here for a pruned network too; the finer ones
    that are in force stand beside in the state.
    """
    order = incremental.order
    if isinstance(order, str) or callable(order):
        names: str | tuple[str, ...] = order_name(order)
    else:
        names = tuple(order_name(one) for one in order)
    return {
        "plan": write_widths({layer.name: width for layer, width in planned}),
        "portions": tuple(PORTIONS if portions is None else portions),
        "order": names,
        "inputs": incremental._inputs is not None,
        "fit": of_ptq.fit,
        "per": of_ptq.per,
        "seed": incremental.seed,
        "straight_through": incremental._straight_through,
        "rate": of_ptq.rate,
    }
