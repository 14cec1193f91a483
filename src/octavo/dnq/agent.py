"""The method ``dnq``: a policy learns the bits of each layer by policy gradient (arXiv 1812.02375).

The paper's public record says what is learned and how. It says nothing of the architecture, the
reward or the quantizer's formula, so all of these are our reconstruction. The policy's own samples
are measured, and the gradient is that of their rewards. Between measurements the policy practises
in a world model, which every measurement corrects (Dyna; Sutton, 1991). Practice costs no
evaluations.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.dnq.belief import Belief
from octavo.dnq.distribution import WithinBudget
from octavo.dnq.evaluator import Evaluator, is_ranged
from octavo.dnq.front import Estimate
from octavo.dnq.policy import Policy
from octavo.dnq.reinforce import Learner, Reinforce
from octavo.dnq.reward import learning_reward
from octavo.dnq.space import Choice
from octavo.dnq.world_model import WorldModel, world_model_of
from octavo.progress import Event

__all__ = ["dnq"]

BUDGETS = 8  # drawn anew for each step of practice, where the search has none of its own
PROPOSED = 64  # budgets for which the trained policy proposes plans


def dnq(
    evaluator: Evaluator, *, warm: bool = True, settings: Reinforce | None = None
) -> tuple[Estimate, ...]:
    """Measure what the policy samples, and let it learn, until the evaluations are spent.

    Args:
        evaluator: measures and counts; it knows the space.
        warm: begin near the exact solution of the additive model; else with a uniform policy.
        settings: settings of the policy gradient.

    Returns:
        The choices that the trained policy proposes for budgets over the whole feasible range, its
        most probable ones and samples, each with the objective that the world model estimates.

    """
    settings = settings or Reinforce()
    sensitivity = evaluator.sensitivity(outputs=True)
    space = evaluator.space
    ranged = is_ranged(evaluator)
    limit = space.cost(space.dearest) if ranged else space.limit
    policy = Policy(space.costs, limit)
    world_model = world_model_of(space.actions, sensitivity)
    agent = _Agent(evaluator, policy, world_model, settings, ranged=ranged)
    if warm:
        policy.begin_from(sensitivity.losses, agent.limits(BUDGETS), settings.entropy[0])
    evaluator.progress(Event("practise", message="the policy practises in its world model"))
    agent.practise(settings.before)
    agent.search()
    return agent.proposals() if ranged else agent.widened().proposals()


class _Agent:
    """The policy, its learner, and the two worlds that it acts in.

    Args:
        evaluator: measures and counts.
        policy: the policy that learns.
        world_model: estimates objectives, and learns from those that are measured.
        settings: settings of the policy gradient.
        ranged: draw the budgets of each step from the whole feasible range; else take the budget
            of the search.

    """

    def __init__(
        self,
        evaluator: Evaluator,
        policy: Policy,
        world_model: WorldModel,
        settings: Reinforce,
        *,
        ranged: bool,
    ) -> None:
        self._evaluator = evaluator
        self._policy = policy
        self._world_model = world_model
        self._settings = settings
        self._ranged = ranged
        self._learner = Learner(policy, settings)
        self._total = evaluator.left

    def limits(self, count: int) -> Tensor:
        """Return the limits of a step: ``count`` that are drawn, or the search's own."""
        space = self._evaluator.space
        if not self._ranged:
            return torch.tensor([space.limit], dtype=torch.float64)
        low = space.cost(space.cheapest)
        high = space.cost(space.dearest)
        drawn = torch.rand(count, generator=self._evaluator.generator, dtype=torch.float64)
        return low + (high - low) * drawn

    def practise(self, steps: int) -> None:
        """Learn from samples whose rewards the world model estimates."""
        for _ in range(steps):
            limits = self.limits(BUDGETS)
            within: WithinBudget = self._policy(limits)
            count = self._settings.imagined // len(limits)
            sampled = within.sample(count, self._evaluator.generator)
            objectives = self._world_model.objectives(_choices(sampled)).tolist()
            self._learn(within, sampled, objectives)

    def search(self) -> None:
        """Measure samples and learn from them, then practise, until the evaluations are spent or
        the policy samples nothing new any more.
        """
        stale = 0
        while self._evaluator.left and stale < self._settings.patience:
            before = self._evaluator.left
            self._measure()
            self.practise(self._settings.practice)
            stale = stale + 1 if self._evaluator.left == before else 0

    def widened(self) -> "_Agent":
        """Return an agent whose policy, after some practice, answers for any budget."""
        space = self._evaluator.space
        policy = Policy(space.costs, space.cost(space.dearest))
        with torch.no_grad():
            policy.logits.copy_(self._policy.logits)
        agent = _Agent(self._evaluator, policy, self._world_model, self._settings, ranged=True)
        agent.practise(self._settings.after)
        return agent

    def proposals(self) -> tuple[Estimate, ...]:
        """Return the most probable choice and samples under each of many budgets, by rising cost.

        Samples between the budgets answer for budgets between them, and the world model, which has
        learned from every measurement, often finds one of them better than the most probable.
        """
        space = self._evaluator.space
        low = space.cost(space.cheapest)
        limits = torch.linspace(low, space.cost(space.dearest), PROPOSED, dtype=torch.float64)
        proposed: list[Choice] = []
        with torch.no_grad():
            for some in limits.split(BUDGETS):
                within: WithinBudget = self._policy(some)
                proposed += _choices(within.mode().unsqueeze(1))
                proposed += _choices(
                    within.sample(self._settings.proposed, self._evaluator.generator)
                )
        choices = sorted(dict.fromkeys(proposed), key=space.cost)
        objectives = self._world_model.objectives(choices).tolist()
        return tuple(map(Estimate, choices, objectives))

    def _measure(self) -> None:
        """Measure a batch of samples; the policy and the world model learn from it."""
        within: WithinBudget = self._policy(self.limits(1))
        sampled = within.sample(self._settings.batch, self._evaluator.generator)
        choices = _choices(sampled)
        new = [choice for choice in dict.fromkeys(choices) if choice not in self._evaluator]
        objectives = self._evaluator.objectives(choices)
        known = dict(zip(choices, objectives, strict=True))
        measured = [choice for choice in new if known[choice] > -math.inf]
        self._world_model.learn(measured, [known[choice] for choice in measured])
        if min(objectives) > -math.inf:
            self._learn(within, sampled, objectives)
            self._report(choices, objectives)

    def _report(self, choices: Sequence[Choice], objectives: Sequence[float]) -> None:
        """Report what the policy believes now; nothing is drawn or changed for it."""
        evaluator = self._evaluator
        space = evaluator.space
        limit = space.limit
        if self._ranged:  # the middle of the feasible range stands for all budgets
            limit = (space.cost(space.cheapest) + space.cost(space.dearest)) / 2
        with torch.no_grad():
            within: WithinBudget = self._policy(torch.tensor([limit], dtype=torch.float64))
        pairs = zip(choices, objectives, strict=True)
        belief = Belief(
            measured=self._total - evaluator.left,
            limit=limit,
            probabilities=within.marginals()[0].numpy(),
            entropy=float(within.entropy()[0]),
            rewards=tuple(evaluator.reward(*pair) for pair in pairs),
        )
        evaluator.progress(Event("policy", belief.measured, self._total, detail=belief))

    def _learn(self, within: WithinBudget, sampled: Tensor, objectives: Sequence[float]) -> None:
        """Take a step of the policy gradient."""
        pairs = zip(_choices(sampled), objectives, strict=True)
        rewards = [self._evaluator.reward(*pair) for pair in pairs]
        if self._world_model.divergence and not self._evaluator.trade_off:
            rewards = list(map(learning_reward, rewards))
        reward = torch.tensor(rewards, dtype=torch.float64).view(sampled.shape[:2])
        progress = 1 - self._evaluator.left / max(self._total, 1)
        self._learner.step(within, sampled, reward, progress)


def _choices(sampled: Tensor) -> list[Choice]:
    """Return a batch of choices as tuples."""
    return [tuple(choice) for choice in sampled.flatten(0, 1).tolist()]
