"""Evolution measures what its world model promises, within the budget, until nothing is new."""

import itertools

import numpy as np
import pytest
from tests.dnq.environments import Formula

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals import proposals
from octavo.dnq.rivals.evolution import evolution, evolve
from octavo.dnq.rivals.exact import exact, exact_choice
from octavo.dnq.rivals.random_search import random_search
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.errors import PlanError
from octavo.plan import Budget

LAYERS = 8
ACTIONS = (tuple(map(Action.parse, (2, 3, 4, 5))),) * LAYERS
SPACE = within(
    Space(tuple("abcdefgh"), ACTIONS, (100,) * LAYERS, (1,) * LAYERS), Budget(average_bits=3)
)


def cancelling(seed: int) -> Formula:
    """Each action of a layer moves the outputs by a vector; the objective is minus the squared
    length of the sum. Errors of layers cancel, so the best plan is not the sum of the best parts.
    """
    drawn = np.random.default_rng(seed)
    size = 3.0 ** -np.arange(4)
    moves = drawn.normal(size=(LAYERS, 4, 6)) * size[None, :, None]

    def objective(choice: Partial) -> float:
        moved = [moves[pair] for pair in enumerate(choice) if pair[1] is not None]
        return -float(np.square(np.sum(moved, axis=0)).sum()) if moved else 0.0

    return Formula(objective)


def evaluator_of(environment: Formula, trials: int = 160, seed: int = 0) -> Evaluator:
    return Evaluator(SPACE, environment, Journal(None, ACTIONS, {}), trials, seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_errors_cancel_it_beats_the_exact_solution_and_chance(seed: int) -> None:
    one, other, chance = (evaluator_of(cancelling(seed)) for _ in range(3))
    evolution(one)
    exact(other)
    random_search(chance)
    assert one.best.objective > chance.best.objective
    assert one.best.objective > other.best.objective
    assert one.trials[0] == other.best  # the exact solution comes first
    assert one.left == 0
    assert all(SPACE.fits(trial.choice) for trial in one.trials)
    assert len(one.trials) == len({trial.choice for trial in one.trials}) == 160 - 33


def test_it_starts_from_what_it_is_given_and_learns_from_every_trial() -> None:
    environment = cancelling(0)
    evaluator = evaluator_of(environment, 60)
    evaluator.objectives([SPACE.cheapest])
    losses = evaluator.losses()
    start = exact_choice(evaluator, losses)
    evolve(evaluator, start)
    assert [trial.choice for trial in evaluator.trials[:2]] == [SPACE.cheapest, start]
    near = evaluator.trials[2].choice  # a mutant of one of the two
    changes = [
        sum(a != b for a, b in zip(near, parent, strict=True)) for parent in (SPACE.cheapest, start)
    ]
    assert 0 < min(changes) < LAYERS
    assert evaluator.left == 0


def test_a_space_without_anything_new_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "CHILDREN", 32)
    actions = ACTIONS[:2]
    space = within(Space(("a", "b"), actions, (10, 10), (1, 1)), Budget(average_bits=3))
    environment = cancelling(0)
    evaluator = Evaluator(space, environment, Journal(None, actions, {}), 1000)
    evolution(evaluator)
    fitting = {c for c in itertools.product(range(4), repeat=2) if space.fits(c)}
    assert {trial.choice for trial in evaluator.trials} <= fitting
    assert len(evaluator.trials) >= 3
    assert evaluator.left > 900


def test_the_same_seed_measures_the_same() -> None:
    def measured(seed: int) -> list[Choice]:
        evaluator = evaluator_of(cancelling(0), 70, seed)
        evolution(evaluator)
        return [trial.choice for trial in evaluator.trials]

    assert measured(3) == measured(3)
    assert measured(3) != measured(4)


def test_too_few_trials_are_refused_before_anything_is_measured() -> None:
    environment = cancelling(0)
    with pytest.raises(PlanError, match=r"^trials: expected at least 34, .* got 33$"):
        evolution(evaluator_of(environment, 33))
    assert not environment.asked
