"""The belief of a policy at one moment of its training, for whoever watches it learn."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Belief"]


@dataclass(frozen=True, eq=False)
class Belief:
    """The distribution of a policy over the actions of each layer, after some measurements.

    Attributes:
        measured: number of evaluations that were spent so far, those of single layers included.
        limit: the limit on the cost under which the probabilities hold.
        probabilities: the probability of each layer's actions, (layers, actions).
        entropy: the entropy of the distribution over whole choices, in nats.
        rewards: the rewards of the episodes that were just measured.

    """

    measured: int
    limit: float
    probabilities: np.ndarray
    entropy: float
    rewards: tuple[float, ...]
