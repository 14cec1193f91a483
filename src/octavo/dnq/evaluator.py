"""The evaluator: it measures and counts choices, for the policy and for every rival alike."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from octavo._deprecated import warn_renamed
from octavo._seeds import seed_of
from octavo.dnq.environment import Measurement
from octavo.dnq.journal import Journal
from octavo.dnq.reward import reward_of
from octavo.dnq.sensitivity import Sensitivity, full_and_single, loss_table, single_layer_choices
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.errors import PlanError
from octavo.network.outputs import Part
from octavo.plan import Plan
from octavo.progress import Event, Progress, silent

__all__ = ["Evaluator", "Measures", "Trial", "is_ranged"]

ALONE = "measuring each layer alone"
NOTED = 16  # objectives that are journalled at a time: the most that a kill can lose


@dataclass(frozen=True)
class Trial:
    """A plan that was measured.

    Attributes:
        plan: the plan.
        choice: the plan as indices into each layer's actions.
        objective: its objective, higher is better.
        stored_bits: bits that its codes take at their entropy.
        reward: what the search maximises; under a budget it is the objective.

    """

    plan: Plan = field(compare=False)
    choice: Choice
    objective: float
    stored_bits: float
    reward: float

    @property
    def score(self) -> float:
        """The objective, by its old name."""
        warn_renamed("Trial.score", "Trial.objective")
        return self.objective


class Measures(Protocol):
    """The part of an environment that an evaluator needs: see ``octavo.dnq.environment``."""

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        """Return the measurement of each choice."""

    def full_outputs(self) -> tuple[Part, ...]:
        """Return the outputs in full precision, where the objective is a function of outputs."""

    def stored_bits(self, choice: Choice) -> float:
        """Return the bits that the codes of a choice take."""


class Evaluator:
    """The counter of evaluations: it measures choices, never one twice, until they are spent.

    Attributes:
        reserve: the number of evaluations that are withheld for now: see
            ``octavo.dnq.refinement``.
        progress: the callback that a method may report its own events to.

    Args:
        space: the layers and their actions.
        environment: measures what is new.
        journal: knows what was measured before, in this process or an earlier one.
        evaluations: how many choices may be measured; those of single layers count too, and so do
            those that the journal knows.
        trade_off: what a doubling of the compression ratio adds to the reward.
        seed: seed of everything that is drawn.
        progress: called with an event for each trial.

    """

    def __init__(
        self,
        space: Space,
        environment: Measures,
        journal: Journal,
        evaluations: int,
        *,
        trade_off: float = 0.0,
        seed: int = 0,
        progress: Progress = silent,
    ) -> None:
        self.space = space
        self.trials: list[Trial] = []
        self.reserve = 0
        self.generator = torch.Generator().manual_seed(seed_of(seed))
        self._environment = environment
        self._measure = partial(_measured, environment, journal)
        self._evaluations = evaluations
        self.trade_off = trade_off
        self.progress = progress
        self._seen: dict[Partial, float] = {}  # objectives of all choices that were counted
        self._whole: set[Choice] = set()  # choices that are trials
        self._sensitivity: Sensitivity | None = None  # measured once

    @property
    def left(self) -> int:
        """The number of choices that may still be measured: 0 once only the reserve is left."""
        return max(0, self._evaluations - self.reserve - len(self._seen))

    @property
    def best(self) -> Trial:
        """The trial of the highest reward within the limit; of equals, the first.

        Raises:
            PlanError: there is no trial yet.

        """
        if not self.trials:
            raise PlanError("expected the method to measure at least one plan, it measured none")
        fitting = [trial for trial in self.trials if self.space.fits(trial.choice)]
        return max(fitting or self.trials, key=lambda trial: trial.reward)

    def under(self, limit: float, evaluations: int) -> Self:
        """Return an evaluator under another limit that may measure at most ``evaluations`` choices.

        Both share all measurements and trials, and the count of evaluations.
        """
        other = copy.copy(self)
        other.space = replace(self.space, limit=limit)
        other.reserve = self.reserve + max(0, self.left - evaluations)
        return other

    def __contains__(self, choice: Choice) -> bool:
        """Return whether the choice is among the trials."""
        return choice in self._whole

    def reward(self, choice: Choice, objective: float) -> float:
        """Return the reward of a choice with this objective: see ``octavo.dnq.reward``."""
        if not self.trade_off:  # thousands of estimates need no plan to be made for each of them
            return objective
        return reward_of(objective, self.space.plan(choice), self.trade_off)

    def rewards(self, choices: Sequence[Choice]) -> list[float]:
        """Measure choices, and return their rewards."""
        objectives = self.objectives(choices)
        return [self.reward(*pair) for pair in zip(choices, objectives, strict=True)]

    def objectives(self, choices: Sequence[Choice]) -> list[float]:
        """Measure choices, and return their objectives: minus infinity for what is new when no
        evaluation is left.
        """
        for first in range(0, len(choices), NOTED):  # each few are reported as they are measured
            some = choices[first : first + NOTED]
            new = [choice for choice in dict.fromkeys(some) if choice not in self._seen]
            new = new[: self.left]
            for choice, measurement in zip(new, self._measure(new), strict=True):
                self._seen[choice] = measurement.objective
            for choice in some:
                if choice in self._seen:
                    self._note(choice, self._seen[choice])
        return [self._seen.get(choice, -math.inf) for choice in choices]

    def reference(self, choice: Choice) -> float:
        """Measure a choice beside the search: it is a trial, but takes no evaluation."""
        (measurement,) = self._measure([choice])
        self._note(choice, measurement.objective)
        return measurement.objective

    def losses(self, *, beside: bool = False) -> np.ndarray:
        """Return what each layer alone loses at each of its actions, (layers, actions).

        Args:
            beside: measure what is new beside the search, so that it takes no evaluations.

        Raises:
            PlanError: too few evaluations are left for that and for one choice.

        """
        if not beside or self._sensitivity is not None:
            return self.sensitivity().losses
        actions = self.space.actions
        return _losses(actions, self._measure(full_and_single(actions)))

    def sensitivity(self, *, outputs: bool = False) -> Sensitivity:
        """Measure each layer alone at each of its actions, against full precision.

        A second call costs no evaluations.

        Args:
            outputs: keep the changed outputs too, for a world model.

        Raises:
            PlanError: too few evaluations are left for that and for one choice.

        """
        known = self._sensitivity
        if known is not None and (known.full or not outputs):
            return known
        actions = self.space.actions
        choices = full_and_single(actions)
        _check_left(self, [choice for choice in choices if choice not in self._seen])
        full = self._environment.full_outputs() if outputs else ()
        measure = partial(self._measure, keep_outputs=bool(full))
        measured = _measured_alone(measure, choices, self.progress)
        for choice, measurement in zip(choices, measured, strict=True):
            self._seen[choice] = measurement.objective
        changed = {}
        if full:
            alone = zip(single_layer_choices(actions), measured[1:], strict=True)
            changed = {pair: measurement.outputs for pair, measurement in alone}
        self._sensitivity = Sensitivity(_losses(actions, measured), full, changed)
        return self._sensitivity

    def _note(self, choice: Choice, objective: float) -> None:
        """Add the choice to the trials unless it is one, and report it."""
        if choice in self._whole:
            return
        self._whole.add(choice)
        trial = Trial(
            self.space.plan(choice),
            choice,
            objective,
            self._environment.stored_bits(choice),
            self.reward(choice, objective),
        )
        self.trials.append(trial)
        most = self._evaluations - self.reserve
        self.progress(Event("search", len(self._seen), most, detail=trial))


def is_ranged(evaluator: Evaluator) -> bool:
    """Tell if a search has neither a budget nor a trade-off, so that it covers all budgets."""
    return math.isinf(evaluator.space.limit) and not evaluator.trade_off


def _measured_alone(
    measure: Callable[[Sequence[Partial]], list[Measurement]],
    choices: Sequence[Partial],
    progress: Progress,
) -> list[Measurement]:
    """Measure full precision and single layers, and report how far it is."""
    progress(Event("survey", 0, len(choices), ALONE))
    measured = list[Measurement]()
    for first in range(0, len(choices), NOTED):
        measured += measure(choices[first : first + NOTED])
        progress(Event("survey", len(measured), len(choices), ALONE))
    return measured


def _losses(actions: Sequence[Sequence[Action]], measured: Sequence[Measurement]) -> np.ndarray:
    """Return what each layer alone loses, (layers, actions).

    ``measured`` are the measurements of full precision and of each layer alone.
    """
    in_full, *alone = [measurement.objective for measurement in measured]
    return loss_table(actions, [in_full - objective for objective in alone])


def _check_left(evaluator: Evaluator, new: Sequence[Partial]) -> None:
    """Raise PlanError if too few evaluations are left for ``new`` single layers and a plan."""
    least = len(new) + (len(evaluator.space.names) > 1)  # of one layer, each action is a plan
    if new and evaluator.left < least:
        reserve = evaluator.reserve
        withheld = f" ({reserve} are withheld for refinement)" if reserve else ""
        raise PlanError(
            f"trials: expected at least {least}, for each layer alone and a plan, "
            f"got {evaluator.left}{withheld}"
        )


def _measured(
    environment: Measures,
    journal: Journal,
    choices: Sequence[Partial],
    *,
    keep_outputs: bool = False,
) -> list[Measurement]:
    """Return measurements, from the journal where it knows them and no outputs are wanted."""
    needed = [choice for choice in choices if keep_outputs or choice not in journal]
    outputs: dict[Partial, tuple[Tensor, ...]] = {}
    for first in range(0, len(needed), NOTED):
        share = needed[first : first + NOTED]
        measured = environment.measure(share, keep_outputs=keep_outputs)
        journal.add(share, [measurement.objective for measurement in measured])
        for choice, measurement in zip(share, measured, strict=True):
            outputs[choice] = measurement.outputs
    return [Measurement(journal[choice], outputs.get(choice, ())) for choice in choices]
