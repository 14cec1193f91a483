"""Where choices are scored and counted: the same for the learned controller and for every rival."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octavo._seeds import seed_of
from octavo.dnq.environment import Environment, Partial
from octavo.dnq.journal import Journal
from octavo.dnq.output_sum import OutputSum
from octavo.dnq.space import Choice, Space, single_layers
from octavo.dnq.widths import WIDTHS, width_index
from octavo.errors import PlanError

__all__ = ["Evaluator", "Trial"]

NOTED = 16  # scores that are journalled at a time: what is lost at most


@dataclass(frozen=True)
class Trial:
    """A choice that was scored, the bits that its codes take at their entropy, and the reward:
    under a budget it is the score.
    """

    choice: Choice
    score: float
    stored_bits: float
    reward: float


class Evaluator:
    """Scores choices, never one twice, until its evaluations are spent.

    Args:
        space: the layers and their options.
        environment: scores what is new.
        journal: knows what was scored before, in this process or an earlier one.
        evaluations: how many choices may be scored; those of single layers count too, those that
            were scored before do not.
        trade_off: what a doubling of the compression ratio adds to the reward, beside the score.
        seed: of what is drawn.
        observe: called with each trial.

    """

    def __init__(
        self,
        space: Space,
        environment: Environment,
        journal: Journal,
        evaluations: int,
        *,
        trade_off: float = 0.0,
        seed: int = 0,
        observe: Callable[[Trial], None] = lambda _: None,
    ) -> None:
        self.space, self.left, self.trials = space, evaluations, list[Trial]()
        self._environment, self._journal, self._observe = environment, journal, observe
        self._trade_off = trade_off
        self._seen: dict[tuple[int | None, ...], float] = {}
        self._whole = set[Choice]()
        self.generator = torch.Generator().manual_seed(seed_of(seed))

    def reward(self, choice: Choice, score: float) -> float:
        """What is maximised: the score, and the trade-off's share of the compression ratio."""
        if not self._trade_off:
            return score
        return score + self._trade_off * math.log2(self.space.plan(choice).cost().ratio)

    def rewards_of(self, choices: Sequence[Choice], scores: Sequence[float]) -> list[float]:
        """Rewards of choices that have these scores, measured or estimated."""
        return [self.reward(choice, score) for choice, score in zip(choices, scores, strict=True)]

    def rewards(self, choices: Sequence[Choice]) -> list[float]:
        """Rewards of choices, which are scored."""
        return self.rewards_of(choices, self.score(choices))

    def knows(self, choice: Choice) -> bool:
        """Whether the choice is among the trials."""
        return choice in self._whole

    def score(self, choices: Sequence[Choice]) -> list[float]:
        """Scores of whole choices; minus infinity for what was not scored before and no evaluation
        is left for.
        """
        scores = self._scores(choices)
        for choice, score in zip(choices, scores, strict=True):
            if score > -np.inf and choice not in self._whole:
                self._whole.add(choice)
                stored_bits = self._environment.stored_bits(choice)
                self.trials.append(Trial(choice, score, stored_bits, self.reward(choice, score)))
                self._observe(self.trials[-1])
        return scores

    def losses(self) -> np.ndarray:
        """What each layer alone loses at each of its options, against full precision: (layers,
        widths), by ``width_index``.

        Raises:
            PlanError: too few evaluations for that and a choice.

        """
        layers, single = len(self.space.names), single_layers(self.space.options)
        if self.left < (least := len(single) + 1 + (layers > 1)):
            raise PlanError(
                f"trials: expected at least {least}, for each layer alone and a plan, got {self.left}"
            )
        top, *scores = self._scores([(None,) * layers, *single.values()])
        loss = np.full(
            (layers, max(WIDTHS, *(width_index(bits) + 1 for _, bits in single))), np.nan
        )
        for (layer, bits), score in zip(single, scores, strict=True):
            loss[layer, width_index(bits)] = top - score
        return loss

    def output_sum(self) -> OutputSum | None:
        """A model of the environment from what the choices of single layers gave, if its scores can
        be modelled.
        """
        return self._environment.output_sum()

    @property
    def best(self) -> Trial:
        """The trial of the highest reward; of equals, the first."""
        return max(self.trials, key=lambda trial: trial.reward)

    def _scores(self, choices: Sequence[Partial]) -> list[float]:
        fresh = [c for c in dict.fromkeys(map(tuple, choices)) if c not in self._seen][: self.left]
        self.left -= len(fresh)
        unknown = [choice for choice in fresh if self._journal.known(choice) is None]
        for start in range(0, len(unknown), NOTED):
            some = unknown[start : start + NOTED]
            self._journal.add(some, self._environment.scores(some))
        for choice in fresh:
            known = self._journal.known(choice)
            self._seen[choice] = -np.inf if known is None else known
        return [self._seen.get(tuple(choice), -np.inf) for choice in choices]
