"""The charts of the search: every trial is there, and the policy's probabilities fill the band."""

from dataclasses import replace

import pytest
from tests.report.charts.drawn import rows_by_layer

from octavo.report.charts.trials import belief_figures, reward_figure, trials_figure
from octavo.report.course import Course
from octavo.report.record import RunRecord


@pytest.fixture
def course(searched: RunRecord) -> Course:
    found = Course.of(searched)
    assert found is not None
    return found


def test_every_trial_is_a_dot_with_its_plan(course: Course, colours: dict[str, str]) -> None:
    figure = trials_figure(course, colours)
    rows = rows_by_layer(figure)[0]
    assert len(rows) == len(course.trials)
    assert {row["plan"] for row in rows} == {row["plan"] for row in course.trials}
    rows = [row for layer in rows_by_layer(figure) for row in layer]
    marks = [row["mark"] for row in rows if "mark" in row]
    assert sorted(marks) == ["chosen plan", "exact plan", "uniform plan"]


def test_the_probabilities_of_a_layer_add_up_at_every_episode(
    course: Course, colours: dict[str, str]
) -> None:
    stack, means = belief_figures(course, colours)
    rows = [row for row in rows_by_layer(stack)[0] if row["layer"] == "0"]
    assert len(rows) == 5
    for parts in zip(*(row["probability"] for row in rows), strict=True):
        assert sum(parts) == pytest.approx(1, abs=1e-3)
    assert all(2 <= mean <= 6 for row in rows_by_layer(means)[0] for mean in row["mean"])


def test_each_measured_episode_has_its_reward(course: Course, colours: dict[str, str]) -> None:
    figure = reward_figure(course, colours)
    assert figure is not None
    assert len(course.rewards) > 4


def test_a_policy_that_never_learned_has_no_charts(course: Course, colours: dict[str, str]) -> None:
    silent = replace(course, beliefs=(), rewards=())
    assert belief_figures(silent, colours) == []
    assert reward_figure(silent, colours) is None
