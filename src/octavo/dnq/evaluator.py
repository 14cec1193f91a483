"""The evaluator: it measures and counts choices, for the policy and for every rival alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from octavo._deprecated import warn_renamed
from octavo._seeds import seed_of
from octavo.dnq.environment import Measurement
from octavo.dnq.journal import Journal
from octavo.dnq.reward import reward_of
from octavo.dnq.sensitivity import Sensitivity, loss_table, single_layer_choices
from octavo.dnq.space import Choice, Partial, Space
from octavo.errors import PlanError
from octavo.network.outputs import Part
from octavo.plan import Plan
from octavo.progress import Event, Progress, silent

__all__ = ["Evaluator", "Measures", "Trial"]

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
        self._journal = journal
        self._evaluations = evaluations
        self._trade_off = trade_off
        self._progress = progress
        self._seen: dict[Partial, float] = {}  # objectives of all choices that were counted
        self._whole: set[Choice] = set()  # choices that are trials
        self._sensitivity: Sensitivity | None = None  # measured once

    @property
    def left(self) -> int:
        """The number of choices that may still be measured: 0 once only the reserve is left."""
        return max(0, self._evaluations - self.reserve - len(self._seen))

    @property
    def best(self) -> Trial:
        """The trial of the highest reward; of equals, the first.

        Raises:
            PlanError: there is no trial yet.

        """
        if not self.trials:
            raise PlanError("expected the method to measure at least one plan, it measured none")
        return max(self.trials, key=lambda trial: trial.reward)

    def __contains__(self, choice: Choice) -> bool:
        """Return whether the choice is among the trials."""
        return choice in self._whole

    def reward(self, choice: Choice, objective: float) -> float:
        """Return the reward of a choice with this objective: see ``octavo.dnq.reward``."""
        if not self._trade_off:  # thousands of estimates need no plan to be made for each of them
            return objective
        return reward_of(objective, self.space.plan(choice), self._trade_off)

    def rewards(self, choices: Sequence[Choice]) -> list[float]:
        """Measure choices, and return their rewards."""
        objectives = self.objectives(choices)
        return [self.reward(*pair) for pair in zip(choices, objectives, strict=True)]

    def objectives(self, choices: Sequence[Choice]) -> list[float]:
        """Measure choices, and return their objectives: minus infinity for what is new when no
        evaluation is left.
        """
        new = [choice for choice in dict.fromkeys(choices) if choice not in self._seen]
        new = new[: self.left]
        for choice, measurement in zip(new, self._measured(new), strict=True):
            self._seen[choice] = measurement.objective
        objectives = [self._seen.get(choice, -math.inf) for choice in choices]
        for choice, objective in zip(choices, objectives, strict=True):
            if objective > -math.inf:
                self._note(choice, objective)
        return objectives

    def reference(self, choice: Choice) -> float:
        """Measure a choice beside the search: it is a trial, but takes no evaluation."""
        (measurement,) = self._measured([choice])
        self._note(choice, measurement.objective)
        return measurement.objective

    def losses(self) -> np.ndarray:
        """Return what each layer alone loses at each of its actions, (layers, actions).

        Raises:
            PlanError: too few evaluations are left for that and for one choice.

        """
        return self.sensitivity().losses

    def reference_losses(self) -> np.ndarray:
        """Return the same as :meth:`losses`; what is new is measured beside the search and takes no
        evaluations.
        """
        if self._sensitivity is not None:
            return self._sensitivity.losses
        in_full, *alone = self._measured(self._single_layers())
        losses = [in_full.objective - each.objective for each in alone]
        return loss_table(self.space.actions, losses)

    def sensitivity(self, *, outputs: bool = False) -> Sensitivity:
        """Measure each layer alone at each of its actions, against full precision.

        A second call costs no evaluations.

        Args:
            outputs: keep the changed outputs too, for a world model.

        Raises:
            PlanError: too few evaluations are left for that and for one choice.

        """
        known = self._sensitivity
        if known is None or (outputs and not known.full):
            self._sensitivity = known = self._measured_sensitivity(outputs=outputs)
        return known

    def _measured_sensitivity(self, *, outputs: bool) -> Sensitivity:
        """Measure what :meth:`sensitivity` returns."""
        single = single_layer_choices(self.space.actions)
        choices = self._single_layers()
        self._check_left(choices)
        full = self._environment.full_outputs() if outputs else ()
        measured = self._measured(choices, keep_outputs=bool(full))
        for choice, measurement in zip(choices, measured, strict=True):
            self._seen[choice] = measurement.objective
        in_full, *alone = measured
        losses = [in_full.objective - each.objective for each in alone]
        changed = {pair: each.outputs for pair, each in zip(single, alone, strict=True)}
        return Sensitivity(loss_table(self.space.actions, losses), full, changed if full else {})

    def _single_layers(self) -> list[Partial]:
        """Return full precision, then each layer alone at each of its actions."""
        single = single_layer_choices(self.space.actions)
        return [(None,) * len(self.space.names), *single.values()]

    def _check_left(self, single: Sequence[Partial]) -> None:
        """Raise PlanError if too few evaluations are left for single layers and for one plan."""
        new = [choice for choice in single if choice not in self._seen]
        if not new:
            return
        least = len(new) + (len(self.space.names) > 1)  # of one layer, each action is a plan
        if self.left < least:
            withheld = f" ({self.reserve} are withheld for refinement)" if self.reserve else ""
            raise PlanError(
                f"trials: expected at least {least}, for each layer alone and a plan, "
                f"got {self.left}{withheld}"
            )

    def _measured(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        """Return measurements, from the journal where it knows them and no outputs are wanted."""
        needed = [choice for choice in choices if keep_outputs or choice not in self._journal]
        outputs: dict[Partial, tuple[Tensor, ...]] = {}
        for first in range(0, len(needed), NOTED):
            share = needed[first : first + NOTED]
            measured = self._environment.measure(share, keep_outputs=keep_outputs)
            self._journal.add(share, [measurement.objective for measurement in measured])
            for choice, measurement in zip(share, measured, strict=True):
                outputs[choice] = measurement.outputs
        return [Measurement(self._journal[choice], outputs.get(choice, ())) for choice in choices]

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
        self._progress(Event("search", len(self._seen), self._evaluations, detail=trial))
