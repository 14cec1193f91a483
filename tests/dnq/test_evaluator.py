"""What counts as an evaluation, and what is noted down of it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from octavo.dnq.environment import Environment, Partial
from octavo.dnq.evaluator import NOTED, Evaluator, Trial
from octavo.dnq.journal import Journal
from octavo.dnq.space import Choice, Space
from octavo.errors import PlanError

SPACE = Space(("a", "b", "c"), ((2, 3, 4),) * 3, (10, 20, 30), (1, 1, 1))


class Synthetic(Environment):
    """The score is minus the sum of 2 to the minus bits; it dies when it has scored so many."""

    def __init__(self, dies: float = math.inf) -> None:
        self.asked, self.dies = list[tuple[int | None, ...]](), dies

    def scores(self, choices: Sequence[Partial]) -> list[float]:
        self.asked += map(tuple, choices)
        if len(self.asked) > self.dies:
            raise KeyboardInterrupt
        return [-sum(2.0**-bits for bits in choice if bits is not None) for choice in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def bench(
    environment: Synthetic, evaluations: int, journal: Journal | None = None, **settings: float
) -> Evaluator:
    return Evaluator(SPACE, environment, journal or Journal(None, {}), evaluations, **settings)  # type: ignore[arg-type]


def test_only_what_is_new_counts_and_nothing_is_scored_beyond_the_evaluations() -> None:
    environment = Synthetic()
    one = bench(environment, 3)
    assert one.score([(2, 2, 2), (3, 3, 3), (2, 2, 2)]) == [-0.75, -0.375, -0.75]
    assert one.left == 1
    assert one.score([(3, 3, 3), (4, 4, 4), (4, 4, 3)]) == [-0.375, -0.1875, -math.inf]
    assert (one.left, len(environment.asked)) == (0, 3)
    assert one.trials == [
        Trial((2, 2, 2), -0.75, 6, -0.75),
        Trial((3, 3, 3), -0.375, 9, -0.375),
        Trial((4, 4, 4), -0.1875, 12, -0.1875),
    ]
    assert one.best == one.trials[2]


def test_what_a_journal_knows_counts_but_is_not_scored_again() -> None:
    journal = Journal(None, {})
    journal.add([(2, 2, 2)], [-7.0])
    environment = Synthetic()
    one = bench(environment, 2, journal)
    assert one.score([(2, 2, 2), (3, 3, 3)]) == [-7.0, -0.375]
    assert (one.left, environment.asked) == (0, [(3, 3, 3)])


def test_losses_are_those_of_layers_alone_and_are_no_trials() -> None:
    one = bench(Synthetic(), 11)
    found = one.losses()
    assert found[:, 2:5].tolist() == [[0.25, 0.125, 0.0625]] * 3
    assert (one.left, one.trials) == (1, [])
    with pytest.raises(PlanError, match=r"^trials: expected at least 11, .*, got 10$"):
        bench(Synthetic(), 10).losses()


def test_a_trade_off_rewards_compression_beside_the_score() -> None:
    one = bench(Synthetic(), 3, trade_off=1.0)
    few, many = one.rewards([(2, 2, 2), (4, 4, 4)])
    assert few == pytest.approx(-0.75 + math.log2(16))
    assert many == pytest.approx(-0.1875 + math.log2(8))
    assert one.best.choice == (2, 2, 2)


def test_what_was_scored_before_a_kill_is_on_file_but_for_the_last_few(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    choices = [(a, b, c) for a in (2, 3, 4) for b in (2, 3, 4) for c in (2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        bench(Synthetic(dies=NOTED + 1), 27, Journal(path, {})).score(choices)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert [tuple(line["bits"]) for line in lines] == choices[:NOTED]
    environment = Synthetic()
    bench(environment, 27, Journal(path, {})).score(choices)
    assert environment.asked == choices[NOTED:]
