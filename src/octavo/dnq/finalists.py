"""Finalists: the best trials, calibrated as in use and measured on inputs that none of them saw.

A trial puts candidates together that were quantized one by one, each from full-precision inputs.
The network that ships is solved sequentially, and it may be retrained. So the search ends with a
choice among the best few plans, made on such networks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from octavo.activations.quantization import quantize_activations
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.fitting import FileFit
from octavo.dnq.objective import Objective, checked_objective
from octavo.dnq.prices import most_file_bytes
from octavo.dnq.rivals.uniform import uniform_choice
from octavo.dnq.space import Choice
from octavo.dnq.splitting import Parts
from octavo.inq.incremental import Incremental, freeze_and_retrain
from octavo.network.copies import copied
from octavo.network.divergence import Divergence
from octavo.network.forward import Inputs, observing
from octavo.plan import Budget, Plan
from octavo.progress import Event
from octavo.pruning.masks import find_kept
from octavo.ptq.file_form import DEFAULT_FORM, FileForm
from octavo.ptq.network_solver import calibrate_quietly
from octavo.ptq.settings import DEFAULTS, PtqSettings
from octavo.storage.packed import Packed

__all__ = ["FINALISTS", "Finalist", "RetrainSteps", "Shipping", "Verdict", "choose", "file_limit"]

FINALISTS = 4  # of the best trials; the exact and the uniform plan come on top

RetrainSteps: TypeAlias = Callable[[nn.Module], object]


@dataclass(frozen=True)
class Finalist:
    """A plan that was calibrated as in use.

    Attributes:
        plan: the plan.
        choice: the plan as indices into each layer's actions.
        objective: the objective of its trial, higher is better.
        final: the objective of the network that ships, on inputs that neither calibrated it nor
            scored trials.
        reward: the number that the final choice maximises: ``final``, or under a trade-off the
            reward that it gives.
        file_bytes: bytes of the packed file of that network, before any retraining.

    """

    plan: Plan
    choice: Choice
    objective: float
    final: float
    reward: float
    file_bytes: int


@dataclass(frozen=True)
class Verdict:
    """The outcome of the final choice.

    Attributes:
        best: the finalist of the highest reward.
        uniform: the uniform plan.
        exact: the plan of the exact solution.
        finalists: all of them, the best first.

    """

    best: Finalist
    uniform: Finalist
    exact: Finalist
    finalists: tuple[Finalist, ...]


class Shipping:
    """The way from a plan to the network that ships, and to its objective.

    Args:
        model: the trained network; it is left as it was.
        batches: all inputs of the search.
        parts: the same inputs, divided by what they are for.
        objective: the user's own objective, or None for minus the divergence from full precision.
        settings: the settings of PTQ.
        form: the form of the file.
        retrain_steps: trains the network that it is given for a few steps. It is called after each
            portion of INQ but the last; None retrains nothing.

    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Inputs],
        parts: Parts,
        *,
        objective: Objective | None = None,
        settings: PtqSettings = DEFAULTS,
        form: FileForm = DEFAULT_FORM,
        retrain_steps: RetrainSteps | None = None,
    ) -> None:
        self._model = model
        self._batches = batches
        self._parts = parts
        self._objective = objective or Divergence(model, parts.confirming).of
        self._settings = settings
        self._form = form
        self._retrain_steps = retrain_steps

    def packed(self, plan: Plan) -> Packed:
        """Solve a plan from all inputs, as ``calibrate`` does."""
        return self._as_filed(self._solved(plan, self._batches))

    def measured(self, plan: Plan) -> tuple[float, int]:
        """Return the objective of a plan's network, and the bytes of its file before retraining.

        Raises:
            PlanError: the objective is no finite number; the message names the plan.

        """
        packed = self._solved(plan, self._parts.solving)
        network = copied(self._model)
        packed.apply(network)
        if self._retrain_steps is not None:
            self._retrain(network, plan, self._retrain_steps)
        with observing(network):
            value = self._objective(network)
        bits = ", ".join(f"{name} {width}" for name, width in plan.items())
        return checked_objective(value, bits), self._as_filed(packed).file_bytes

    def _solved(self, plan: Plan, batches: Sequence[Inputs]) -> Packed:
        model = self._model
        if plan.activations:
            model = copied(model)
            quantize_activations(model, batches, plan.activations)
        return calibrate_quietly(model, plan, batches, self._settings)

    def _as_filed(self, packed: Packed) -> Packed:
        return self._form.of(packed, self._model, self._batches)

    def _retrain(self, network: nn.Module, plan: Plan, retrain_steps: RetrainSteps) -> None:
        """Run INQ on a network that starts from its PTQ, in the default portions and order."""
        masks = find_kept(self._model, plan)
        rate = self._settings.rate
        incremental = Incremental(network, plan, masks=masks, rate=rate, distributed=False)
        freeze_and_retrain(incremental, retrain_steps)


def choose(evaluator: Evaluator, shipping: Shipping, exact: Choice, most: int | None) -> Verdict:
    """Choose among the best trials, the exact and the uniform plan by the networks that ship.

    Args:
        evaluator: its trials, and their space.
        shipping: solves and measures.
        exact: the choice of the exact solution.
        most: the most bytes of the file that ``calibrate`` writes from all inputs; None where the
            budget is no limit on the file.

    Raises:
        BudgetError: no file that was tried is within the budget.
        PlanError: the objective of a network is no finite number.

    """
    return _FinalChoice(evaluator, shipping).verdict(exact, most)


def file_limit(budget: Budget | None, float_bytes: int) -> int | None:
    """Return the most bytes of the file that a budget allows; None if it does not limit the file.

    Args:
        budget: the budget.
        float_bytes: bytes of the network's tensors in float, as ``Packed.float_bytes``.

    """
    if budget is None or not budget.of_file:
        return None
    return math.floor(most_file_bytes(budget, float_bytes))


class _FinalChoice:
    """The final choice: each choice of actions is solved once for each purpose."""

    def __init__(self, evaluator: Evaluator, shipping: Shipping) -> None:
        self._evaluator = evaluator
        self._space = evaluator.space
        self._shipping = shipping
        self._finalists: dict[Choice, Finalist] = {}
        self._file_bytes: dict[Choice, int] = {}

    def verdict(self, exact: Choice, most: int | None) -> Verdict:
        """Return the best finalist, beside the uniform and the exact plan."""
        like = self._evaluator.best.choice
        best_trials = self._best_trials()
        if most is None:
            uniform = uniform_choice(self._space, like)
            settled = [*best_trials, exact, uniform]
        else:
            losses = self._evaluator.losses(beside=True)
            fit = FileFit(self._space, losses, self.file_bytes, most)
            uniform = fit.uniform()
            exact = fit(exact)
            settled = self._fitted(fit, best_trials, [exact, uniform])
        finalists = sorted(map(self.finalist, dict.fromkeys(settled)), key=_highest_first)
        return Verdict(finalists[0], self.finalist(uniform), self.finalist(exact), tuple(finalists))

    def _best_trials(self) -> list[Choice]:
        """Return the choices of the highest rewards within the budget; of equals, the first."""
        fitting = [each for each in self._evaluator.trials if self._space.fits(each.choice)]
        best = sorted(fitting, key=lambda trial: -trial.reward)
        return [trial.choice for trial in best[:FINALISTS]]

    def _fitted(
        self, fit: FileFit, best_trials: Sequence[Choice], settled: Sequence[Choice]
    ) -> list[Choice]:
        """Return choices whose files fit: the best trials, changed until they fit, and the settled
        ones.

        Changing a choice takes several solutions. So it is left out where the choice as it is does
        worse than one that fits already.
        """
        uniform = settled[-1]
        waiting = sorted(map(self.finalist, [*best_trials, uniform]), key=_highest_first)
        fitted = list[Choice]()
        for finalist in waiting:
            so_far = max(self.finalist(choice).reward for choice in (*fitted, *settled))
            if finalist.reward < so_far:
                break
            fitted.append(fit(finalist.choice))
        return [*fitted, *settled]

    def finalist(self, choice: Choice) -> Finalist:
        """Solve and measure a choice."""
        if choice not in self._finalists:
            plan = self._space.plan(choice)
            number = len(self._finalists) + 1
            self._evaluator.progress(
                Event("finalist", message=f"finalist {number}: calibrating it")
            )
            final, file_bytes = self._shipping.measured(plan)
            self._finalists[choice] = Finalist(
                plan,
                choice,
                self._evaluator.reference(choice),
                final,
                self._evaluator.reward(choice, final),
                file_bytes,
            )
        return self._finalists[choice]

    def file_bytes(self, choice: Choice) -> int:
        """Return the bytes of the file that ``calibrate`` writes from all inputs."""
        if choice not in self._file_bytes:
            plan = self._space.plan(choice)
            self._file_bytes[choice] = self._shipping.packed(plan).file_bytes
        return self._file_bytes[choice]


def _highest_first(finalist: Finalist) -> float:
    return -finalist.reward
