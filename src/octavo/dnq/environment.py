"""The environment of the search: the objective of a choice, without retraining.

Every (layer, action) pair is quantized once, by PTQ from full-precision inputs. A trial puts the
chosen candidates into the network, and runs those inputs once that score trials. (DNQ, arXiv
1812.02375, published neither its environment nor its reward: this one is ours.)
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.dnq.candidates import Candidate, quantize_all
from octavo.dnq.file_sizes import FileSizes, file_sizes
from octavo.dnq.matching import Statistics, matched, norm_statistics
from octavo.dnq.objective import Objective, checked_objective
from octavo.dnq.space import Action, Choice, Partial
from octavo.dnq.trial_network import TrialNetwork
from octavo.network.calls import undisturbed
from octavo.network.conduct import Conduct, conduct_of
from octavo.network.divergence import Divergence, first_rows
from octavo.network.forward import Inputs, observing
from octavo.network.outputs import Part
from octavo.network.thread_state import ThreadState
from octavo.progress import Progress, silent
from octavo.ptq.file_form import DEFAULT_FORM, FileForm
from octavo.ptq.settings import DEFAULTS, PtqSettings

__all__ = ["Environment", "Measurement"]

NUMBERS = 1 << 24  # the numbers that are kept from the outputs of all single layers together


@dataclass(frozen=True, eq=False)
class Measurement:
    """The result of one trial.

    Attributes:
        objective: the objective, higher is better.
        outputs: the first rows of each part of the outputs, where they were asked for and the
            objective is a function of the outputs; else empty.

    """

    objective: float
    outputs: tuple[Tensor, ...] = ()


class Environment:
    """The source of objectives: it measures choices, and higher is better.

    Every trial runs under the autocast and the default device under which the environment was made,
    as its reference outputs did.

    Args:
        model: the trained network; it is left as it was.
        layers: names of the layers that are searched, in forward order.
        calibrating: the batches that candidates are quantized from, on the model's device.
        actions: the actions that each layer may take.
        scoring: the batches that trials are scored on; None: those that calibrate. An objective of
            the user's own does not read them.
        objective: a function of the model that is maximised. None: minus what the outputs lose of
            full precision: see ``octavo.network.divergence``.
        settings: the settings of PTQ.
        workers: how many choices are measured at a time, each by a copy of the model that shares
            all its weights.
        progress: called after each layer with an event of the phase ``"survey"``.

    Raises:
        PlanError: the inputs do not fit, a layer is not reached, or the model returns nothing to
            compare.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        calibrating: Iterable[Inputs],
        actions: Sequence[Sequence[Action]],
        *,
        scoring: Iterable[Inputs] | None = None,
        objective: Objective | None = None,
        workers: int = 1,
        settings: PtqSettings = DEFAULTS,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._layers = tuple(layers)
        self._actions = actions
        batches = list(calibrating)
        self._callers = ThreadState.current()  # trials run under these settings
        self._candidates = quantize_all(
            model, layers, batches, actions, settings, progress=progress
        )
        self._networks = [self._trial_network() for _ in range(workers)]
        scored = batches if scoring is None else list(scoring)
        with observing(model):
            self._conduct = conduct_of(model, [*batches, *scored])
        self._objective = objective or Divergence(model, scored, self._conduct)
        self._statistics: Statistics = {}
        if isinstance(self._objective, Divergence):
            with observing(model):
                self._statistics = norm_statistics(model, self._objective.batches)

    def objectives(self, choices: Sequence[Partial]) -> list[float]:
        """Return the objective of each choice; None instead of an index leaves that layer in full
        precision.

        Raises:
            PlanError: the objective is not a finite number; the message names the choice.

        """
        return [measurement.objective for measurement in self.measure(choices)]

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        """Return the measurement of each choice, with the first rows of its outputs on request."""
        workers = len(self._networks)
        measured: dict[int, Measurement] = {}

        def work(worker: int) -> None:
            network = self._networks[worker]
            for index in range(worker, len(choices), workers):
                measured[index] = self._measure(network, choices[index], keep_outputs=keep_outputs)

        with self._callers.entered(), observing(self._model):
            if workers == 1:
                work(0)
            else:
                _in_threads(work, workers)
        return [measured[index] for index in range(len(choices))]

    def full_outputs(self) -> tuple[Part, ...]:
        """Return the first rows of each part of the outputs in full precision; nothing where the
        objective is not a function of the outputs.
        """
        if not isinstance(self._objective, Divergence):
            return ()
        return self._objective.first_parts(_kept_rows(self._actions, self._objective))

    def stored_bits(self, choice: Choice) -> float:
        """Return the bits that the codes of a choice take at their entropy."""
        return sum(
            candidates[action].stored_bits
            for candidates, action in zip(self._candidates, choice, strict=True)
        )

    def file_sizes(self, form: FileForm = DEFAULT_FORM) -> FileSizes:
        """Return an estimate of the bytes that a packed file of each choice takes in this form."""
        return file_sizes(self._model, self._layers, self._candidates, form)

    def network(self, choice: Partial) -> nn.Module:
        """Return the network as the trial of a choice has it; everything that is not searched is
        shared with the model.
        """
        network = self._trial_network()
        network.put(self._chosen(choice))
        return network.model

    def _measure(
        self, network: TrialNetwork, choice: Partial, *, keep_outputs: bool
    ) -> Measurement:
        network.put(self._chosen(choice))
        if not isinstance(self._objective, Divergence):
            own = _own(self._objective, network.model, self._conduct)
            return Measurement(self._checked(own, choice))
        with matched(network.model, self._statistics):
            outputs = self._objective.outputs(network.model)
        objective = self._checked(self._objective.objective(outputs), choice)
        if not keep_outputs:
            return Measurement(objective)
        return Measurement(
            objective, first_rows(outputs, _kept_rows(self._actions, self._objective))
        )

    def _checked(self, value: object, choice: Partial) -> float:
        """Return the objective as a number, or raise PlanError unless it is a finite one."""
        bits = ", ".join(
            f"{name} {'float' if action is None else actions[action]}"
            for name, actions, action in zip(self._layers, self._actions, choice, strict=True)
        )
        return checked_objective(value, bits)

    def _chosen(self, choice: Partial) -> list[Candidate | None]:
        return [
            None if action is None else candidates[action]
            for candidates, action in zip(self._candidates, choice, strict=True)
        ]

    def _trial_network(self) -> TrialNetwork:
        rounded = [
            name
            for name, candidates in zip(self._layers, self._candidates, strict=True)
            if any(candidate.quantizer is not None for candidate in candidates)
        ]
        return TrialNetwork(self._model, self._layers, rounded)


def _own(objective: Objective, network: nn.Module, conduct: Conduct) -> object:
    """Return the user's own objective of a network, which stays as it is."""
    if conduct.pure:
        return objective(network)
    with undisturbed(network, conduct.written):
        return objective(network)


def _kept_rows(actions: Sequence[Sequence[Action]], divergence: Divergence) -> int:
    """Return how many rows of the outputs are kept, so that those of all single layers fit."""
    numbers_of_a_row = sum(map(len, actions)) * divergence.width
    return max(1, NUMBERS // numbers_of_a_row)


def _in_threads(work: Callable[[int], None], workers: int) -> None:
    """Run each worker in a thread of its own, under the caller's autocast and default device."""
    callers = ThreadState.current()

    def work_as_caller(worker: int) -> None:
        with callers.entered(), torch.no_grad():
            work(worker)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work_as_caller, range(workers)):
            pass  # an exception of a worker is raised here
