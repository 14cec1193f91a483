"""REINFORCE on batches of choices (Williams, 1992), with a leave-one-out baseline and a decaying
entropy bonus.

One page, top to bottom. What is scored is not the sample but what was made of it: brought within
the budget, and where it is measured, bettered. The probability that is raised or lowered is that of
the choice that was scored, without weights for having been drawn otherwise, so the policy learns to
propose what is really tried. Two things keep it from settling on a choice while evaluations are
left: a share of every layer's probability is spread evenly over its options, so that some layers of
    each sample explore; and the best choice so far takes part in every batch, so that what is
    learned from is never lost.
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
    """Settings of the policy gradient.

    Attributes:
        batch: choices a step.
        learning_rate: Adam's.
        entropy: weight of the entropy bonus at the start; it falls linearly to 0 over the trials.
        explore: how many layers of a sample are drawn evenly, on average; more, while batches bring
            nothing new.
        confidence: what imitation makes of the probability of each imitated option.
        patience: how many batches in a row may propose nothing new before learning ends.

    """

    batch: int = 8
    learning_rate: float = 0.02
    entropy: float = 0.02
    explore: float = 1.5
    confidence: float = 0.8
    patience: int = 100


def imitate(
    controller: Policy, indices: Sequence[int], settings: Reinforce, steps: int = 200
) -> None:
    """Warm start: give each layer's option in ``indices`` about the probability ``confidence``, and
    share out the rest.
    """
    count = controller.allowed.sum(1)
    rest = (1 - settings.confidence) / (count - 1).clamp(min=1)
    target = torch.where(controller.allowed, rest.unsqueeze(1), 0.0)
    target[torch.arange(len(target)), torch.tensor(indices)] = torch.where(
        count > 1, settings.confidence, 1.0
    )
    optimizer = torch.optim.Adam(controller.parameters(), settings.learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-(target * controller()).sum(1).mean()).backward()
        optimizer.step()


def learn(
    controller: Policy,
    settings: Reinforce,
    generator: torch.Generator,
    rewards: Callable[[Tensor], tuple[Tensor, Tensor]],
    left: Callable[[], int],
) -> None:
    """Train the controller until no evaluations are left, or it proposes nothing new any more.

    Args:
        controller: the policy.
        settings: how.
        generator: what samples are drawn from.
        rewards: takes sampled options (batch, layers) to the options that were tried and their
            rewards (batch,), minus infinity for what could not be scored any more.
        left: how many new choices may still be scored.

    """
    optimizer = torch.optim.Adam(controller.parameters(), settings.learning_rate)
    whole, stale = left(), 0
    best, best_reward = (
        torch.empty(0, len(controller.allowed), dtype=torch.int64),
        torch.empty(0, dtype=torch.float64),
    )
    while (before := left()) and stale < settings.patience:
        policy = _exploring(controller, settings.explore * GROWTH**stale)
        sampled = torch.multinomial(
            policy.detach().exp(), settings.batch, replacement=True, generator=generator
        ).T
        tried, reward = rewards(sampled)
        scored = reward.isfinite()
        tried, reward = torch.cat([best, tried[scored]]), torch.cat([best_reward, reward[scored]])
        optimizer.zero_grad()
        (-surrogate(policy, tried, reward, settings.entropy * before / whole)).backward()
        optimizer.step()
        best, best_reward = tried[(first := reward.argmax()) : first + 1], reward[first : first + 1]
        stale = stale + 1 if left() == before else 0


def _exploring(controller: Policy, explore: float) -> Tensor:
    """The controller's log probabilities, mixed with even ones so that ``explore`` layers of a
    sample are drawn from these.
    """
    share = min(explore / len(controller.allowed), 1.0)
    even = controller.allowed / controller.allowed.sum(1, keepdim=True)
    mixed: Tensor = (1 - share) * controller().exp() + share * even
    return mixed.clamp(min=1e-30).log()


def surrogate(log_probabilities: Tensor, tried: Tensor, reward: Tensor, entropy: float) -> Tensor:
    """What the policy gradient climbs: advantage times log probability, and the bonus for entropy.

    The advantage of a choice is its reward less the mean of the others', in units of the batch's
    deviation.
    """
    if len(reward) > 1:
        others = (reward.sum() - reward) / (len(reward) - 1)
        advantage = (reward - others) / reward.std().clamp(min=1e-12)
    else:
        advantage = torch.zeros_like(reward)
    chosen = log_probabilities.gather(1, tried.T).sum(0)
    spread = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
    return (advantage * chosen).mean() + entropy * spread
