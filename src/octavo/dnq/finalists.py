"""Finalists: the best trials, solved as they ship and measured on inputs that none of them saw.

A trial puts candidates together that were quantized one by one, each from full-precision inputs.
The network that ships is solved sequentially, and it may be retrained. So the search ends with a
choice among the best few plans, made on such networks.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from octavo.activations.quantization import quantize_activations
from octavo.dnq.divergence import Divergence
from octavo.dnq.objective import Objective, checked_objective
from octavo.dnq.space import Choice
from octavo.dnq.splitting import Parts
from octavo.inq.incremental import Incremental
from octavo.network.forward import Inputs
from octavo.plan import Plan
from octavo.pruning.masks import find_kept
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed

__all__ = ["FINALISTS", "Finalist", "Shipping", "Verdict", "choose", "file_limit"]

FINALISTS = 4  # of the best trials; the exact and the uniform plan come on top

RetrainSteps = Callable[[nn.Module], object]


@dataclass(frozen=True)
class Finalist:
    """A plan that was solved as it ships.

    Attributes:
        plan: the plan.
        choice: the plan as indices into each layer's actions.
        objective: the objective of its trial, higher is better.
        final: the objective of the network that ships, on inputs that neither calibrated it nor
            scored trials.
        reward: what the final choice maximises: ``final``, or under a trade-off the reward of it.
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
        parts: the same inputs by their task.
        objective: the user's own objective, or None for minus the divergence from full precision.
        absorb: as ``calibrate`` takes it.
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
        absorb: bool = False,
        retrain_steps: RetrainSteps | None = None,
    ) -> None:
        self._model = model
        self._batches = batches
        self._parts = parts
        self._objective = objective or Divergence(model, parts.confirming).of
        self._absorb = absorb
        self._retrain_steps = retrain_steps

    def packed(self, plan: Plan) -> Packed:
        """Solve a plan from all inputs, as ``calibrate`` does by default."""
        return self._solved(plan, self._batches)

    def measured(self, plan: Plan) -> tuple[float, int]:
        """Return the objective of a plan's network, and the bytes of its file before retraining.

        Raises:
            PlanError: the objective is no finite number; the message names the plan.

        """
        packed = self._solved(plan, self._parts.solving)
        network = copy.deepcopy(self._model)
        packed.apply(network)
        if self._retrain_steps is not None:
            self._retrain(network, plan, self._retrain_steps)
        with observing(network):
            value = self._objective(network)
        bits = ", ".join(f"{name} {width}" for name, width in plan.items())
        return checked_objective(value, bits), packed.file_bytes

    def _solved(self, plan: Plan, batches: Sequence[Inputs]) -> Packed:
        model = self._model
        if plan.activations:
            model = copy.deepcopy(model)
            quantize_activations(model, batches, plan.activations)
        return calibrate(model, plan, batches, absorb=self._absorb)

    def _retrain(self, network: nn.Module, plan: Plan, retrain_steps: RetrainSteps) -> None:
        """Run INQ on a network that starts from its PTQ, as ``compress`` does."""
        incremental = Incremental(network, plan, masks=find_kept(self._model, plan))
        for stage in incremental:
            if not stage.last:
                retrain_steps(network)
        incremental.finish()
