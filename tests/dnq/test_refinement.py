"""Refinement: the method keeps to its share, and what evolution added is told apart."""

import math
from collections.abc import Sequence

import pytest

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.methods import method_of
from octavo.dnq.prices import within
from octavo.dnq.refinement import check_share, run_refined
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.errors import PlanError
from octavo.network.outputs import Part
from octavo.plan import Budget

LAYERS = 6
ACTIONS = (tuple(map(Action.parse, (2, 3, 4, 5))),) * LAYERS
SINGLE = 1 + 4 * LAYERS  # trials of full precision and of single layers
SPACE = within(
    Space(tuple("abcdef"), ACTIONS, (10,) * LAYERS, (1,) * LAYERS), Budget(average_bits=3)
)


class Additive:
    """Later layers need bits more than earlier ones."""

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        return [Measurement(self.objective(choice)) for choice in choices]

    def objective(self, choice: Partial) -> float:
        return -sum(
            (1 + layer) * 2.0**-action for layer, action in enumerate(choice) if action is not None
        )

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def evaluator_of(trials: int) -> Evaluator:
    return Evaluator(SPACE, Additive(), Journal(None, ACTIONS, {}), trials)


def test_the_method_has_all_but_the_last_share() -> None:
    left = list[int]()

    def method(evaluator: Evaluator) -> None:
        left.append(evaluator.left)
        while evaluator.left:
            method_of("random")(evaluator)
        assert evaluator.objectives([SPACE.cheapest]) in ([-math.inf], [-21.0])

    evaluator = evaluator_of(100)
    refinement = run_refined(method, evaluator, 0.25).refinement
    assert left == [75 - SINGLE]
    assert evaluator.left == 0
    assert refinement is not None
    alone = evaluator.trials[: 75 - SINGLE]
    assert refinement.before == max(alone, key=lambda trial: trial.reward)
    assert refinement.after == evaluator.best
    assert refinement.added == evaluator.best.objective - refinement.before.objective > 0
    others = [trial.choice for trial in evaluator.trials[75 - SINGLE :]]
    assert len(others) == 25


def test_what_a_method_leaves_goes_to_the_refinement() -> None:
    evaluator = evaluator_of(60)
    refinement = run_refined(method_of("uniform"), evaluator, 0.1).refinement
    assert evaluator.left == 0
    assert len(evaluator.trials) == 60 - SINGLE
    assert refinement is not None
    assert refinement.before == evaluator.trials[0]
    assert refinement.before.choice == (1,) * LAYERS


@pytest.mark.parametrize("method", ["dnq", "exact", "greedy", "tpe", "evolution", "random"])
def test_every_method_can_be_refined_and_is_never_worse_for_it(method: str) -> None:
    evaluator = evaluator_of(70)
    refinement = run_refined(method_of(method), evaluator, 0.4).refinement
    assert refinement is not None
    assert refinement.added >= 0
    assert len(evaluator.trials) <= 70 - SINGLE


def test_without_a_share_the_method_is_alone() -> None:
    evaluator = evaluator_of(60)
    assert run_refined(method_of("uniform"), evaluator, 0.0).refinement is None
    assert (len(evaluator.trials), evaluator.left) == (1, 59)


def test_a_share_that_leaves_the_method_too_little_is_an_error_that_says_so() -> None:
    message = rf"^trials: expected at least {SINGLE + 1}, .* got 20 \(20 are withheld for refine"
    with pytest.raises(PlanError, match=message):
        run_refined(method_of("exact"), evaluator_of(40), 0.5)


def test_a_method_that_measures_nothing_is_an_error_that_says_so() -> None:
    with pytest.raises(PlanError, match="expected the method to measure at least one plan"):
        run_refined(lambda evaluator: None, evaluator_of(60), 0.2)


@pytest.mark.parametrize("wrong", [-0.1, 1, 1.5, math.nan, True, "half"])
def test_a_share_is_from_0_to_below_1(wrong: object) -> None:
    with pytest.raises(PlanError, match=r"^refine: expected a share .*, got "):
        check_share(wrong)  # type: ignore[arg-type]
    check_share(0.999)
