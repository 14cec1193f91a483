"""What counts as an evaluation, and what is noted down of it."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import NOTED, Evaluator, Trial
from octavo.dnq.journal import Journal
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.errors import PlanError
from octavo.network.outputs import Part
from octavo.progress import Event

ACTIONS = (tuple(map(Action.parse, (2, 3, 4))),) * 3
SPACE = Space(("a", "b", "c"), ACTIONS, (10, 20, 30), (1, 1, 1))


class Synthetic:
    """The objective is minus the sum of 2 to the minus bits; it dies after so many choices."""

    def __init__(self, dies: float = math.inf) -> None:
        self.asked, self.dies = list[Partial](), dies

    def full_outputs(self) -> tuple[Part, ...]:
        return (Part("", False, torch.zeros(1, 1)),)

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        self.asked += choices
        if len(self.asked) > self.dies:
            raise KeyboardInterrupt
        outputs = (torch.ones(1, 1),) if keep_outputs else ()
        return [Measurement(objective(choice), outputs) for choice in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def objective(choice: Partial) -> float:
    return -sum(2.0 ** -(2 + action) for action in choice if action is not None)


def journal_of(path: Path | None = None) -> Journal:
    return Journal(path, ACTIONS, {})


def evaluator_of(
    environment: Synthetic, evaluations: int, journal: Journal | None = None, **settings: float
) -> Evaluator:
    return Evaluator(SPACE, environment, journal or journal_of(), evaluations, **settings)  # type: ignore[arg-type]


def test_only_what_is_new_counts_and_nothing_is_scored_beyond_the_evaluations() -> None:
    environment = Synthetic()
    one = evaluator_of(environment, 3)
    assert one.objectives([(0, 0, 0), (1, 1, 1), (0, 0, 0)]) == [-0.75, -0.375, -0.75]
    assert one.left == 1
    assert one.objectives([(1, 1, 1), (2, 2, 2), (2, 2, 1)]) == [-0.375, -0.1875, -math.inf]
    assert (one.left, len(environment.asked)) == (0, 3)
    assert one.trials == [
        Trial(SPACE.plan((0, 0, 0)), (0, 0, 0), -0.75, 0, -0.75),
        Trial(SPACE.plan((1, 1, 1)), (1, 1, 1), -0.375, 3, -0.375),
        Trial(SPACE.plan((2, 2, 2)), (2, 2, 2), -0.1875, 6, -0.1875),
    ]
    assert [dict(trial.plan) for trial in one.trials] == [
        dict.fromkeys("abc", bits) for bits in (2, 3, 4)
    ]
    assert one.best == one.trials[2]


def test_what_a_journal_knows_counts_but_is_not_scored_again() -> None:
    journal = journal_of()
    journal.add([(0, 0, 0)], [-7.0])
    environment = Synthetic()
    one = evaluator_of(environment, 2, journal)
    assert one.objectives([(0, 0, 0), (1, 1, 1)]) == [-7.0, -0.375]
    assert (one.left, environment.asked) == (0, [(1, 1, 1)])


def test_losses_are_those_of_layers_alone_and_are_no_trials() -> None:
    one = evaluator_of(Synthetic(), 11)
    found = one.losses()
    assert found.tolist() == [[0.25, 0.125, 0.0625]] * 3
    assert (one.left, one.trials) == (1, [])
    with pytest.raises(PlanError, match=r"^trials: expected at least 11, .*, got 10$"):
        evaluator_of(Synthetic(), 10).losses()


def test_a_trade_off_rewards_compression_beside_the_score() -> None:
    one = evaluator_of(Synthetic(), 3, trade_off=1.0)
    few, many = one.rewards([(0, 0, 0), (2, 2, 2)])
    assert few == pytest.approx(-0.75 + math.log2(16))
    assert many == pytest.approx(-0.1875 + math.log2(8))
    assert one.best.choice == (0, 0, 0)


def test_what_was_scored_before_a_kill_is_on_file_but_for_the_last_few(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    choices = list(itertools.product(range(3), repeat=3))
    with pytest.raises(KeyboardInterrupt):
        evaluator_of(Synthetic(dies=NOTED + 1), 27, journal_of(path)).objectives(choices)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert [tuple(line["bits"]) for line in lines] == [
        tuple(2 + action for action in choice) for choice in choices[:NOTED]
    ]
    environment = Synthetic()
    evaluator_of(environment, 27, journal_of(path)).objectives(choices)
    assert environment.asked == choices[NOTED:]


def test_a_reference_is_a_trial_beside_the_count() -> None:
    environment = Synthetic()
    one = evaluator_of(environment, 1)
    one.objectives([(0, 0, 0)])
    assert one.reference((1, 1, 1)) == -0.375
    assert one.reference((0, 0, 0)) == -0.75  # it is a trial already
    assert one.left == 0
    assert [trial.choice for trial in one.trials] == [(0, 0, 0), (1, 1, 1)]
    assert environment.asked == [(0, 0, 0), (1, 1, 1)]
    assert one.best.choice == (1, 1, 1)


def test_a_sensitivity_has_the_changed_outputs_on_request() -> None:
    environment = Synthetic()
    one = evaluator_of(environment, 11)
    measured = one.sensitivity(outputs=True)
    assert len(measured.full) == 1
    assert list(measured.changed) == [(layer, at) for layer in range(3) for at in range(3)]
    assert one.left == 1
    plain = evaluator_of(Synthetic(), 11).sensitivity()
    assert (plain.full, plain.changed) == ((), {})
    assert plain.losses.tolist() == measured.losses.tolist()


def test_single_layers_are_measured_once() -> None:
    synthetic = Synthetic()
    evaluator = evaluator_of(synthetic, 11)
    with_outputs = evaluator.sensitivity(outputs=True)
    assert evaluator.sensitivity(outputs=True) is with_outputs
    assert evaluator.sensitivity() is with_outputs
    plain = evaluator_of(synthetic, 11)
    losses = plain.sensitivity()
    assert plain.sensitivity() is losses
    assert plain.sensitivity(outputs=True).full


def test_outputs_are_measured_anew_where_the_journal_knows_the_objectives() -> None:
    journal = journal_of()
    evaluator_of(Synthetic(), 11, journal).losses()
    environment = Synthetic()
    one = evaluator_of(environment, 11, journal)
    assert len(one.sensitivity(outputs=True).changed) == 9
    assert (one.left, len(environment.asked)) == (1, 10)


def test_each_trial_is_reported_once_with_what_was_spent() -> None:
    events: list[Event] = []
    one = Evaluator(SPACE, Synthetic(), journal_of(), 12, progress=events.append)
    one.losses()
    one.objectives([(0, 0, 0), (1, 1, 1), (0, 0, 0)])
    counts = [(event.done, event.total) for event in events if event.phase == "survey"]
    assert counts == [(0, 10), (10, 10)]  # full precision, and nine single layers
    events = [event for event in events if event.phase != "survey"]
    assert [event.detail for event in events] == one.trials
    assert {(event.phase, event.done, event.total) for event in events} == {("search", 12, 12)}


def test_the_old_name_of_a_trials_objective_warns() -> None:
    trial = Trial(SPACE.plan((0, 0, 0)), (0, 0, 0), -0.75, 6, -0.75)
    with pytest.warns(DeprecationWarning, match=r"Trial\.objective"):
        assert trial.score == -0.75
