"""REINFORCE on batches of choices (Williams, 1992), with a leave-one-out baseline and a decaying
entropy bonus.

An episode is one choice, so its return is its reward. The choice that is rewarded is not the sample
but what was made of it: brought within the budget and, where it is measured, improved. The gradient
raises or lowers the probability of the rewarded choice, without weights for having been drawn
otherwise, so the policy learns to propose what is really tried. Two things keep it from settling
while evaluations are left: a share of every layer's probability is spread evenly over its actions,
so that some layers of each sample explore; and the best choice so far takes part in every batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.dnq.policy import Policy

__all__ = ["Reinforce", "imitate", "learn", "surrogate"]

GROWTH = 1.1  # of exploration, for each batch in a row that brought nothing new


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """The settings of the policy gradient.

    Attributes:
        batch: episodes in a step.
        learning_rate: learning rate of Adam.
        entropy: weight of the entropy bonus at the start; it falls linearly to 0 over the
            evaluations.
        explore: how many layers of a sample are drawn evenly, on average; more, while batches bring
            nothing new.
        confidence: the probability that imitation gives to each imitated action.
        patience: how many batches in a row may propose nothing new before learning ends.

    """

    batch: int = 8
    learning_rate: float = 0.02
    entropy: float = 0.02
    explore: float = 1.5
    confidence: float = 0.8
    patience: int = 100


def imitate(policy: Policy, choice: Sequence[int], settings: Reinforce, steps: int = 200) -> None:
    """Train the policy to give each layer's action in ``choice`` about the probability
    ``confidence``, and the other actions equal shares of the rest.
    """
    count = policy.allowed.sum(1)
    rest = (1 - settings.confidence) / (count - 1).clamp(min=1)
    target = torch.where(policy.allowed, rest.unsqueeze(1), 0.0)  # (layers, actions)
    imitated = torch.where(count > 1, settings.confidence, 1.0)
    target[torch.arange(len(target)), torch.tensor(choice)] = imitated
    optimizer = torch.optim.Adam(policy.parameters(), settings.learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy = -(target * policy()).sum(1).mean()
        cross_entropy.backward()
        optimizer.step()


def learn(
    policy: Policy,
    settings: Reinforce,
    generator: torch.Generator,
    reward_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    left: Callable[[], int],
) -> None:
    """Train the policy until no evaluations are left, or it proposes nothing new any more.

    Args:
        policy: the policy.
        settings: settings of the gradient.
        generator: what samples are drawn from.
        reward_of: takes sampled actions (batch, layers) to the choices that were tried and their
            rewards (batch,), minus infinity for what could not be measured any more.
        left: returns how many new choices may still be measured.

    """
    optimizer = torch.optim.Adam(policy.parameters(), settings.learning_rate)
    evaluations = left()
    stale = 0  # batches in a row that brought nothing new
    best = torch.empty(0, len(policy.allowed), dtype=torch.int64)
    best_reward = torch.empty(0, dtype=torch.float64)
    while (before := left()) and stale < settings.patience:
        log_probabilities = _exploring(policy, settings.explore * GROWTH**stale)
        sampled = torch.multinomial(
            log_probabilities.detach().exp(),
            settings.batch,
            replacement=True,
            generator=generator,
        ).T  # (batch, layers)
        tried, reward = reward_of(sampled)
        measured = reward.isfinite()
        tried = torch.cat([best, tried[measured]])
        reward = torch.cat([best_reward, reward[measured]])
        entropy_weight = settings.entropy * before / evaluations
        optimizer.zero_grad()
        (-surrogate(log_probabilities, tried, reward, entropy_weight)).backward()
        optimizer.step()
        first = reward.argmax()
        best = tried[first : first + 1]
        best_reward = reward[first : first + 1]
        stale = stale + 1 if left() == before else 0


def surrogate(
    log_probabilities: Tensor, choices: Tensor, reward: Tensor, entropy_weight: float
) -> Tensor:
    """Return the function whose gradient the policy climbs.

    It is the mean of advantage times log probability, and the entropy bonus. The baseline of a
    choice is the mean reward of the others, and advantages are in units of the batch's deviation.

    Args:
        log_probabilities: of the policy, (layers, actions).
        choices: the choices that were rewarded, (batch, layers).
        reward: their rewards, (batch,).
        entropy_weight: weight of the mean entropy of the layers.

    """
    advantage = torch.zeros_like(reward)
    if len(reward) > 1:
        baseline = (reward.sum() - reward) / (len(reward) - 1)
        advantage = (reward - baseline) / reward.std().clamp(min=1e-12)
    log_probability = log_probabilities.gather(1, choices.T).sum(0)  # (batch,)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
    return (advantage * log_probability).mean() + entropy_weight * entropy


def _exploring(policy: Policy, explore: float) -> Tensor:
    """Return the policy's log probabilities, mixed with even ones so that ``explore`` layers of a
    sample are drawn from these.
    """
    share = min(explore / len(policy.allowed), 1.0)
    even = policy.allowed / policy.allowed.sum(1, keepdim=True)
    mixed: Tensor = (1 - share) * policy().exp() + share * even
    return mixed.clamp(min=1e-30).log()
