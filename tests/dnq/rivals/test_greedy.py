"""The greedy rival: exchanges mend what single layers do not tell."""

from collections.abc import Sequence

import numpy as np

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals.greedy import greedy
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.network.outputs import Part
from octavo.plan import Budget

ACTIONS = (tuple(map(Action.parse, (2, 3, 4, 5))),) * 3
LOSSES = np.array([[0.01, 0.009, 0.008, 0.007], [2.0, 0.7, 0.3, 0.02], [0.5, 0.21, 0.06, 0.01]])


class InCompany:
    """Layer 0 alone loses little at 2 bits, but a lot in company."""

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        return [Measurement(-self._lost(choice)) for choice in choices]

    def _lost(self, choice: Partial) -> float:
        alone = sum(LOSSES[layer, at] for layer, at in enumerate(choice) if at is not None)
        return float(alone) + 3.0 * (choice[0] == 0 and None not in choice)

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def test_it_mends_what_the_additive_model_gets_wrong() -> None:
    budget = Budget(average_bits=3)
    space = within(Space(("a", "b", "c"), ACTIONS, (100, 37, 260), (9, 400, 31)), budget)
    evaluator = Evaluator(space, InCompany(), Journal(None, ACTIONS, {}), 100)
    greedy(evaluator)
    assert evaluator.trials[0].choice[0] == 0
    assert evaluator.best.choice[0] > 0
    assert evaluator.best.objective > evaluator.trials[0].objective
