"""The policy of DNQ (arXiv 1812.02375; its architecture is our choice).

It reads the losses of single layers, what each action costs, and the budget, and gives a
distribution over the choices within that budget: see ``octavo.dnq.distribution``. It learns a logit
for each layer and action, and how that logit changes with the budget.
"""

import numpy as np
import torch
from torch import Tensor, nn

from octavo.dnq.distribution import Ledger, WithinBudget

__all__ = ["Policy"]

BISECTIONS = 40


class Policy(nn.Module):
    """A distribution over choices under any budget.

    Args:
        costs: what each action costs, (layers, actions), NaN where a layer has fewer.
        limit: the highest limit on the sum of costs; infinite where there is none.

    Attributes:
        logits: the logit of each action under the highest limit, (layers, actions).
        slopes: the numbers that a lower limit subtracts from the logits, (layers, actions): all of
            them at the limit that only the cheapest choice meets, half of them in the middle.

    """

    def __init__(self, costs: np.ndarray, limit: float) -> None:
        super().__init__()
        self.ledger = Ledger(costs, limit)
        self.logits = nn.Parameter(torch.zeros(costs.shape, dtype=torch.float64))
        self.slopes = nn.Parameter(torch.zeros(costs.shape, dtype=torch.float64))

    def forward(self, limits: Tensor) -> WithinBudget:
        """Return the distribution over choices under each of several limits."""
        rooms = self.ledger.rooms(limits)
        lower = 1 - rooms / max(self.ledger.most, 1)  # (budgets,): 0 at the highest limit
        logits = self.logits - lower[:, None, None] * self.slopes
        return WithinBudget(self.ledger, logits, rooms)

    def begin_from(self, losses: np.ndarray, limits: Tensor, entropy: float) -> None:
        """Prefer the actions by which single layers lose least: ``logits = -losses / temperature``.

        At temperature 0 the most probable choice under any budget would be the exact solution of
        the additive model. The temperature is the one at which the mean entropy under ``limits`` is
        ``entropy``, in nats, or is nearest to it.
        """
        known = torch.from_numpy(np.nan_to_num(losses))
        unit = max(float(known.abs().max()), 1e-30)
        low = -20.0  # of the logarithm of the temperature, in units of the largest loss
        high = 5.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            with torch.no_grad():
                self.logits.copy_(-known / (unit * np.exp(middle)))
            if float(self(limits).entropy().mean()) < entropy:
                low = middle
            else:
                high = middle
