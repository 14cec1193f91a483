"""The result of a search: the plan, those that it was chosen among, and plans for other budgets."""

from dataclasses import dataclass, field, replace

import numpy as np

from octavo._deprecated import warn_renamed
from octavo.dnq.evaluator import Trial
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.finalists import Finalist, Shipping
from octavo.dnq.front import Estimate, best_within, front_of
from octavo.dnq.prices import in_bytes, within
from octavo.dnq.refinement import Refinement
from octavo.dnq.space import Space
from octavo.plan import Budget, Plan

__all__ = ["SearchResult"]


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The result of a search.

    All objectives but those of trials are final measures: those of the network that ships, solved
    as ``calibrate`` does (and retrained, given ``retrain_steps``), on inputs that neither
    calibrated it nor scored trials.

    Attributes:
        plan: the best plan within the budget, or by the trade-off; without either, the best one of
            at most the size at the knee of the front. It can be edited by hand.
        objective: its objective, higher is better. It is never below those of the uniform and the
            exact plan; under a trade-off, its reward is never below theirs.
        uniform: the dearest uniform plan within the budget; under a trade-off, the dearest one
            that costs no more than the best trial.
        uniform_objective: the objective of the uniform plan.
        exact: the exact solution of the additive model: the plan that would be best if the losses
            of single layers added up. Where all plans were measured, the best trial.
        exact_objective: the objective of the exact plan.
        finalists: the plans of which the best was chosen, the best first.
        held_out: number of samples that were set aside for the final choice; where inputs cannot be
            divided by sample, number of batches. 0: nothing was set aside, because there were too
            few, or because the objective is the user's own and reads no inputs.
        trials: every plan that was measured, in the order of measuring.
        space: the layers, the actions that they could take, and what these cost.
        sizes: the estimated bytes of a packed file.
        losses: what each layer alone loses at each action, (layers, actions), where it is known.
        refinement: the best trial of the method alone, and the best one after refinement; None
            where nothing was refined.
        estimates: the choices that the trained policy proposes for budgets over the whole range,
            with the objectives that its world model estimates; empty for other methods.
        shipping: calibrates a plan as in use, and measures it.
        enumerated: True if there were so few plans within the budget that all of them were
            measured, whatever the method.

    """

    plan: Plan
    objective: float
    uniform: Plan
    uniform_objective: float
    exact: Plan
    exact_objective: float
    finalists: tuple[Finalist, ...]
    held_out: int
    trials: tuple[Trial, ...]
    space: Space
    sizes: FileSizes
    shipping: Shipping = field(compare=False)
    losses: np.ndarray | None = field(default=None, compare=False)
    refinement: Refinement | None = None
    estimates: tuple[Estimate, ...] = ()
    enumerated: bool = False

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials that no other beats in both objective and bytes of the file, by rising bytes;
        where bits of inputs are searched for, in objective and bit operations.
        """
        return front_of(self.trials, in_bytes(self.space, self.sizes))

    def at(self, budget: Budget, *, confirm: int = 0) -> Plan:
        """Return the best plan for another budget: a trial, or a choice that the trained policy
        proposes.

        Nothing new is measured unless ``confirm`` says so. Proposals count with the objective that
        the world model estimates, and the bytes of files are estimated. So ``calibrate`` may write
        a file slightly above a budget of bytes; a search with that budget guarantees it. A higher
        budget never gives a plan of a worse objective.

        Args:
            budget: the budget.
            confirm: number of plans, the most promising ones, that are solved as they ship and
                measured; the best of them is returned.

        Raises:
            BudgetError: no plan that the search knows fits; the message says what they cost.

        """
        space = within(self.space, budget, self._corrected_sizes())
        measured = {trial.choice for trial in self.trials}
        known = [Estimate(trial.choice, trial.objective) for trial in self.trials]
        known += [each for each in self.estimates if each.choice not in measured]
        best = best_within(known, space, max(confirm, 1))
        plans = [space.plan(each.choice) for each in best]
        if not confirm:
            return plans[0]
        return max(plans, key=lambda plan: self.shipping.measured(plan)[0])

    def _corrected_sizes(self) -> FileSizes:
        """Return the sizes with the rest as large as the finalists' real files need it."""
        space = in_bytes(self.space, self.sizes)
        estimated = [self.sizes.rest + space.cost(each.choice) for each in self.finalists]
        real = [each.file_bytes for each in self.finalists]
        more = [size - guess for size, guess in zip(real, estimated, strict=True)]
        return replace(self.sizes, rest=self.sizes.rest + max(more, default=0.0))

    @property
    def score(self) -> float:
        """The objective, by its old name."""
        warn_renamed("SearchResult.score", "SearchResult.objective")
        return self.objective

    @property
    def uniform_score(self) -> float:
        """The objective of the uniform plan, by its old name."""
        warn_renamed("SearchResult.uniform_score", "SearchResult.uniform_objective")
        return self.uniform_objective

    def __repr__(self) -> str:
        average = self.plan.cost().average_bits
        uniform_average = self.uniform.cost().average_bits
        held_out = f"{self.held_out} inputs held out" if self.held_out else "no inputs held out"
        return (
            f"SearchResult({len(self.plan)} layers, {average:.3g} average bits, "
            f"objective {self.objective:.5g}; uniform: {uniform_average:.3g} average bits, "
            f"objective {self.uniform_objective:.5g}; exact: objective {self.exact_objective:.5g}; "
            f"{held_out}; {len(self.trials)} trials)"
        )
