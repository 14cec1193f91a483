"""The rivals of Optuna: what they propose is within the budget, and a small space ends them."""

import itertools
from collections.abc import Callable, Sequence

import optuna
import pytest

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals.optuna_methods import cmaes, tpe
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.network.outputs import Part
from octavo.plan import Budget

ACTIONS = (tuple(map(Action.parse, (2, 3, 4))),) * 2


class Bits:
    """The objective is the number of bits."""

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        return [Measurement(float(sum(9 if at is None else at for at in c))) for c in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


@pytest.mark.parametrize("method", [tpe, cmaes])
def test_every_proposal_fits_and_a_small_space_ends_the_search(
    method: Callable[[Evaluator], None],
) -> None:
    space = within(Space(("a", "b"), ACTIONS, (10, 10), (1, 1)), Budget(average_bits=3))
    evaluator = Evaluator(space, Bits(), Journal(None, ACTIONS, {}), 100)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        method(evaluator)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO  # it is the caller's
    finally:
        optuna.logging.set_verbosity(before)
    fitting = [c for c in itertools.product(range(3), repeat=2) if space.fits(c)]
    measured = [trial.choice for trial in evaluator.trials]
    assert set(measured) <= set(fitting)
    assert len(measured) >= 3
    assert evaluator.best.objective == 2.0
