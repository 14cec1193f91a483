"""The controller: a recurrent policy that gives each layer its bits (DNQ, arXiv 1812.02375; its
architecture is our choice).

A bidirectional LSTM reads the layers in forward order and answers with a categorical distribution
over each layer's options.
"""

import torch
from torch import Tensor, nn

__all__ = ["Policy"]

HIDDEN = 32
FORBIDDEN = -1e9  # the logit of an option that a layer does not have


class Policy(nn.Module):
    """Policy over choices of bits.

    Args:
        features: what is known of each layer, (layers, features).
        allowed: bool, (layers, options): which options each layer has.

    """

    features: Tensor
    allowed: Tensor

    def __init__(self, features: Tensor, allowed: Tensor) -> None:
        super().__init__()
        mean, deviation = features.mean(0), features.std(0, correction=0)
        self.register_buffer("features", (features - mean) / deviation.clamp(min=1e-6))
        self.register_buffer("allowed", allowed)
        self.recurrent = nn.LSTM(features.shape[1], HIDDEN, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN + features.shape[1], allowed.shape[1])
        self.own = nn.Parameter(
            torch.zeros(allowed.shape)
        )  # what the features do not tell of a layer
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self) -> Tensor:
        """Log probabilities of the options, (layers, options); uniform over what is allowed before
        any training.
        """
        hidden, _ = self.recurrent(self.features)
        logits = self.head(torch.cat([hidden, self.features], 1)) + self.own
        result: Tensor = logits.masked_fill(~self.allowed, FORBIDDEN).log_softmax(1)
        return result
