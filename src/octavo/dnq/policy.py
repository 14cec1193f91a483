"""The policy: a recurrent network that gives each layer its action (DNQ, arXiv 1812.02375; its
architecture is our choice).

A bidirectional LSTM reads the layers in forward order and answers with a categorical distribution
over each layer's actions.
"""

import torch
from torch import Tensor, nn

__all__ = ["Policy"]

HIDDEN = 32
FORBIDDEN = -1e9  # the logit of an action that a layer does not have


class Policy(nn.Module):
    """A distribution over choices; layers are independent of each other.

    Args:
        features: what is known of each layer, (layers, features).
        allowed: bool, (layers, actions): the actions that each layer has.

    """

    features: Tensor
    allowed: Tensor

    def __init__(self, features: Tensor, allowed: Tensor) -> None:
        super().__init__()
        mean = features.mean(0)
        deviation = features.std(0, correction=0)
        self.register_buffer("features", (features - mean) / deviation.clamp(min=1e-6))
        self.register_buffer("allowed", allowed)
        self.recurrent = nn.LSTM(features.shape[1], HIDDEN, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN + features.shape[1], allowed.shape[1])
        self.bias = nn.Parameter(torch.zeros(allowed.shape))  # what features do not tell of a layer
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self) -> Tensor:
        """Return log probabilities of the actions, (layers, actions).

        Before any training they are uniform over the actions that are allowed.
        """
        hidden, _ = self.recurrent(self.features)  # (layers, 2 * HIDDEN)
        logits = self.head(torch.cat([hidden, self.features], 1)) + self.bias
        log_probabilities: Tensor = logits.masked_fill(~self.allowed, FORBIDDEN).log_softmax(1)
        return log_probabilities
