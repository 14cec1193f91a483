"""The distribution of a policy over the choices within a budget, exact in its probabilities.

Layers are taken in forward order. The probability of an action is the policy's own, times that of
completing the choice within the budget that the action leaves; an action that leaves too little for
the layers behind is impossible. Summed over the layers, this is the policy's distribution under the
condition that the whole choice fits:

    p(choice) = exp(sum of logits - unspent / step) / Z(budget)

where ``step`` is the median cost of a step between actions: a choice that leaves much of the budget
unspent is less probable.

``Z`` is a sum over all choices that fit. A dynamic programme over what is left of the budget
computes it, as the forward algorithm does for a hidden Markov model. (This is ours: DNQ's public
record, arXiv 1812.02375, does not say how its policy keeps to a budget.)
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ledger", "WithinBudget"]

UNITS = 1000  # the least number of units in which a budget is counted
# Costs are rounded up, on average by half a unit a layer: 2.5 % of the range at most.
UNITS_PER_LAYER = 20
ROUNDING = 1e-9  # of a unit: a quotient may be so far from a whole number by rounding alone
IMPOSSIBLE = -1e30


class Ledger:
    """Costs in whole units, and what each action leaves of a budget.

    Args:
        costs: what each action costs, (layers, actions), NaN where a layer has fewer.
        limit: the highest limit on the sum of costs; infinite where there is none.

    Attributes:
        allowed: the actions that each layer has, bool, (layers, actions).
        units: units that each action costs beyond the cheapest of its layer, (layers, actions).
        step: the median cost of a step from one action to the next dearer one, in units.
        most: units that the highest limit leaves beyond the cheapest choice.
        after: units left after an action, by what was left before, (layers, most + 1, actions).
        possible: true where the layer has the action and it costs no more than what was left.

    """

    def __init__(self, costs: np.ndarray, limit: float) -> None:
        cheapest = np.nanmin(costs, 1, keepdims=True)  # (layers, 1)
        beyond = np.nan_to_num(costs - cheapest)
        self._cheapest = float(cheapest.sum())
        dearest = float(beyond.max(1).sum())
        self._dearest = self._cheapest + dearest
        room = max(min(limit - self._cheapest, dearest), 1e-12)
        self.allowed = torch.from_numpy(~np.isnan(costs))
        if math.isfinite(limit):
            parts = max(UNITS, UNITS_PER_LAYER * len(costs))
            self._unit = room / parts
            units = np.ceil(beyond / self._unit - ROUNDING).clip(max=parts + 1)
            # A limit that allows every choice has to allow the dearest one rounded up, too.
            self.most = int(units.max(1).sum()) if limit >= self._dearest else parts
        else:
            self._unit = room
            units = np.zeros_like(beyond)
            self.most = 0
        self.units = torch.from_numpy(units.astype(np.int64))
        steps = np.diff(np.sort(units, 1))
        self.step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
        left = torch.arange(self.most + 1)
        after = left[None, :, None] - self.units[:, None]
        self.possible = (after >= 0) & self.allowed[:, None]
        self.after = after.clamp(min=0)

    def rooms(self, limits: Tensor) -> Tensor:
        """Return the units that limits leave beyond the cheapest choice, int64."""
        units = ((limits - self._cheapest) / self._unit + ROUNDING).floor().clamp(0, self.most)
        return units.masked_fill(limits >= self._dearest, self.most).long()


class WithinBudget:
    """Distributions over choices, one for each of several budgets.

    Args:
        ledger: the costs.
        logits: logits of the actions under each budget, float64, (budgets, layers, actions).
        rooms: units of each budget, (budgets,): see :meth:`Ledger.rooms`.

    """

    def __init__(self, ledger: Ledger, logits: Tensor, rooms: Tensor) -> None:
        self._ledger = ledger
        self._rooms = rooms
        self._logits = logits.masked_fill(~ledger.allowed, IMPOSSIBLE).log_softmax(2)
        left = torch.arange(ledger.most + 1, dtype=torch.float64)
        end = (-left / ledger.step).expand(len(rooms), -1)  # (budgets, most + 1)
        # log Z of the layers from each one on, by what is left of the budget, last layer first
        self._log_z = [end]
        for layer in reversed(range(len(ledger.units))):
            self._log_z.append(self._terms(layer, self._log_z[-1]).logsumexp(2))
        self._log_z.reverse()

    def _terms(self, layer: int, behind: Tensor) -> Tensor:
        """Return the terms of ``log Z``, or of a maximum, (budgets, most + 1, actions)."""
        completed = behind[:, self._ledger.after[layer]]
        terms = self._logits[:, layer, None] + completed
        return terms.masked_fill(~self._ledger.possible[layer], IMPOSSIBLE)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw choices under each budget, int64, (budgets, count, layers)."""
        budgets = torch.arange(len(self._rooms)).unsqueeze(1)
        left = self._rooms.unsqueeze(1).expand(-1, count)  # (budgets, count)
        actions = []
        for layer, units in enumerate(self._ledger.units):
            behind = self._log_z[layer + 1].detach()
            completed = behind[budgets.unsqueeze(2), self._ledger.after[layer][left]]
            possible = self._ledger.possible[layer][left]
            terms = (self._logits[:, layer, None].detach() + completed).masked_fill(
                ~possible, IMPOSSIBLE
            )
            probability = terms.softmax(2).flatten(0, 1)  # (budgets * count, actions)
            drawn = torch.multinomial(probability, 1, generator=generator).view(left.shape)
            actions.append(drawn)
            left = left - units[drawn]
        return torch.stack(actions, 2)

    def log_probability(self, choices: Tensor) -> Tensor:
        """Return the log probability of choices (budgets, count, layers), (budgets, count)."""
        layers = torch.arange(choices.shape[2])
        own = self._logits.unsqueeze(1).expand(-1, choices.shape[1], -1, -1)
        summed = own.gather(3, choices.unsqueeze(3)).squeeze(3).sum(2)
        unspent = self._rooms.unsqueeze(1) - self._ledger.units[layers, choices].sum(2)
        log_probability = summed - unspent.double() / self._ledger.step - self._total().unsqueeze(1)
        return log_probability.masked_fill(unspent < 0, -torch.inf)

    def mode(self) -> Tensor:
        """Return the most probable choice under each budget, int64, (budgets, layers)."""
        with torch.no_grad():
            best = self._log_z[-1]
            by_layer = []
            for layer in reversed(range(len(self._ledger.units))):
                best, action = self._terms(layer, best).max(2)
                by_layer.append(action)  # (budgets, most + 1)
        budgets = torch.arange(len(self._rooms))
        left = self._rooms
        choices = []
        for units, action in zip(self._ledger.units, reversed(by_layer), strict=True):
            chosen = action[budgets, left]
            choices.append(chosen)
            left = left - units[chosen]
        return torch.stack(choices, 1)

    def entropy(self) -> Tensor:
        """Return the entropy under each budget in nats, without a gradient, (budgets,)."""
        total, marginal = self._total_and_marginals
        logits = self._logits.detach()
        own = (marginal * logits.clamp(min=-1e6)).sum((1, 2))
        unspent = self._rooms - (marginal * self._ledger.units).sum((1, 2))
        return total - own + unspent / self._ledger.step

    def marginals(self) -> Tensor:
        """Return the probability of each layer's actions, without a gradient, (budgets, layers,
        actions).
        """
        return self._total_and_marginals[1].clamp(min=0.0)  # rounding may leave -1e-17

    @functools.cached_property
    def _total_and_marginals(self) -> tuple[Tensor, Tensor]:
        """Return ``log Z`` and the probability of each action, which is its gradient."""
        logits = self._logits.detach().requires_grad_()
        with torch.enable_grad():
            total = WithinBudget(self._ledger, logits, self._rooms)._total()
            (gradient,) = torch.autograd.grad(total.sum(), logits)
        # The logits were normalized again, so the gradient lacks their own probabilities.
        return total.detach(), gradient + logits.detach().exp()

    def _total(self) -> Tensor:
        """Return ``log Z`` under each budget, (budgets,)."""
        return self._log_z[0].gather(1, self._rooms.unsqueeze(1)).squeeze(1)
