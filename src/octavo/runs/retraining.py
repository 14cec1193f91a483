"""The settings of retraining."""

import math
from dataclasses import dataclass

__all__ = ["Retraining"]


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """The settings of retraining.

    Each stage starts anew with its learning rate, momentum and schedule (INQ, section 2.2).

    Attributes:
        learning_rate: the rate at the start of each stage; it falls to 0 along half a cosine. The
            scales of activations have ten times this rate, because they would hardly move
            otherwise.
        momentum: the momentum of Nesterov's method.
        weight_decay: the decay of every parameter that trains, apart from the scales of
            activations.
        clip: the largest norm of the gradient.
        temperature: softens the outputs of teacher and student before their KL divergence.
        labels: share of the task's own, supervised loss in the total; 0 uses no labels.
        accumulate: the number of parts that each batch is cut into. The gradient of the batch is
            made part by part, in less memory; only batch norms see a difference.
        bfloat16: run the forward pass in bfloat16 where torch's autocast allows it; weights and
            updates stay in float32.

    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 5.0
    temperature: float = 1.0
    labels: float = 0.0
    accumulate: int = 1
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        for name in ("momentum", "labels"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate: expected at least 1, got {self.accumulate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay: expected a number of at least 0, got {self.weight_decay}"
            )
