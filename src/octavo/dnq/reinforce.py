"""REINFORCE (Williams, 1992): the policy gradient, from choices that the policy sampled itself.

An episode is one choice, so its return is its reward. The baseline of a choice is the mean reward
of the others in its batch, and rewards are in units of the deviation that earlier batches had. Both
are independent of the choice, so the gradient is unbiased. An entropy bonus keeps the policy from
settling early. Its weight is set by the entropy itself (as in soft actor-critic, Haarnoja et al.,
2018): it rises while the entropy is below its target, and the target falls as the search goes on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.dnq.distribution import WithinBudget
from octavo.dnq.policy import Policy

__all__ = ["Learner", "Reinforce", "surrogate"]

CONSTANT = 1e-12  # deviation below which rewards count as equal


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """The settings of the policy gradient.

    Attributes:
        learning_rate: learning rate of Adam; 0 switches learning off.
        entropy: target of the policy's entropy in nats, at the start and at the end. Where even a
            uniform policy has less, the bonus only grows to its limit.
        batch: episodes that are measured between two steps.
        practice: steps in the world model after each measured batch; 0 switches practice off.
        before: steps in the world model before anything is measured.
        after: steps in the world model under budgets of the whole range, after a search with a
            budget of its own.
        imagined: episodes of a step in the world model.
        proposed: samples of the trained policy under each of the budgets that it answers for.
        patience: number of measured batches in a row without a new choice, after which learning
            ends.

    """

    learning_rate: float = 0.05
    entropy: tuple[float, float] = (8.0, 3.0)
    batch: int = 4
    practice: int = 5
    before: int = 100
    after: int = 50
    imagined: int = 64
    proposed: int = 64
    patience: int = 100


class Learner:
    """The optimizer of a policy.

    Args:
        policy: the policy, changed in place.
        settings: settings of the gradient.

    """

    KEPT = 0.9  # share of the deviation so far that a batch keeps
    WEIGHT = 0.3  # weight of the entropy bonus at the start
    GAIN = 0.001  # change of the weight's logarithm, for each episode and each nat off the target
    LEAST = 1e-3  # limits of the weight
    MOST = 10.0

    def __init__(self, policy: Policy, settings: Reinforce) -> None:
        self._settings = settings
        self._optimizer = torch.optim.Adam(policy.parameters(), settings.learning_rate)
        self._weight = self.WEIGHT
        self._deviation: float | None = None

    def step(self, within: WithinBudget, choices: Tensor, rewards: Tensor, progress: float) -> None:
        """Raise the probability of choices by their advantage.

        The first batch changes no probability: its deviation is the unit of the next one's rewards.

        Args:
            within: the policy's distribution under each of several budgets.
            choices: choices that were sampled from it, (budgets, count, layers).
            rewards: their rewards, (budgets, count).
            progress: share of the search that is over, from 0 to 1.

        """
        deviation = max(float(rewards.std(1).mean()), CONSTANT)
        if self._deviation is None:
            self._deviation = deviation
            return
        log_probability = within.log_probability(choices)
        self._optimizer.zero_grad()
        (-surrogate(log_probability, rewards / self._deviation, self._weight)).backward()
        self._optimizer.step()
        if deviation > CONSTANT:  # equal choices have equal rewards, which are no unit
            self._deviation = self.KEPT * self._deviation + (1 - self.KEPT) * deviation
        self._balance(-float(log_probability.detach().mean()), rewards.numel(), progress)

    def _balance(self, entropy: float, episodes: int, progress: float) -> None:
        """Raise the weight of the entropy bonus while the entropy is below its target, else lower
        it.
        """
        first, last = self._settings.entropy
        missing = first + (last - first) * progress - entropy
        changed = self._weight * math.exp(self.GAIN * episodes * missing)
        self._weight = min(max(changed, self.LEAST), self.MOST)


def surrogate(log_probability: Tensor, rewards: Tensor, entropy_weight: float) -> Tensor:
    """Return the function whose gradient the policy climbs, a scalar.

    It is the mean of advantage times log probability. The entropy bonus is part of the reward,
    ``- entropy_weight * log p``, whose expectation is the entropy.

    Args:
        log_probability: log probabilities of the sampled choices, (budgets, count); at least two
            choices under each budget.
        rewards: their rewards, (budgets, count).
        entropy_weight: weight of the entropy bonus.

    """
    total = rewards - entropy_weight * log_probability.detach()
    others = rewards.shape[1] - 1
    baseline = (total.sum(1, keepdim=True) - total) / others  # (budgets, count)
    return ((total - baseline) * log_probability).mean()
