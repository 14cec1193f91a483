"""A run keeps the loss of each step and the time of each phase."""

import pytest

from octavo.progress import Event, silent
from octavo.runs.training import StepFigures
from octavo.runs.watching import OTHER, LossCurve, Stopwatch, diverged, keeping_beliefs


def curve_of(losses: list[float], every: int = 1) -> LossCurve:
    """The curve of these losses, as ``retrain`` reports them after every so many steps."""
    curve = LossCurve()
    for step in range(every, len(losses) + 1, every):
        mean = sum(losses[:step]) / step
        curve.add(Event("retrain", step, len(losses), detail=StepFigures(step, mean, 1.0)))
    return curve


def test_the_loss_of_each_step_comes_from_the_means_so_far() -> None:
    points = curve_of([4.0, 2.0, 1.0, 5.0]).points()
    assert points == [(1, 4.0), (2, 2.0), (3, 1.0), (4, 5.0)]


def test_reports_that_are_rare_and_points_that_are_few_give_means_of_what_lies_between() -> None:
    losses = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    assert curve_of(losses, every=2).points() == [(2, 2.0), (4, 6.0), (6, 10.0)]
    assert curve_of(losses).points(3) == [(2, 2.0), (4, 6.0), (6, 10.0)]
    assert curve_of(losses).points(4) == [(2, 2.0), (4, 6.0), (6, 10.0)]
    assert curve_of([]).points() == []


def test_the_last_step_is_always_a_point() -> None:
    points = curve_of([float(step) for step in range(1, 102)]).points(10)
    assert len(points) <= 10
    assert points[-1][0] == 101


def test_the_time_before_an_event_belongs_to_its_phase() -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    watch = Stopwatch(silent, lambda: next(times))
    step = StepFigures(1, 1, 1)
    for event in (
        Event("note", message="full precision: 1"),
        Event("search", 1, 2, detail=object()),
        Event("policy", 1, 2, detail=object()),
        Event("retrain", message="control, stage 1/2"),
        Event("retrain", 1, 9, message="control, stage 1/2", detail=step),
    ):
        watch(event)
    watch.count()
    assert watch.seconds == {OTHER: 1 + 4 + 6, "search": 2 + 3, "retraining, control": 5}


def test_all_events_are_passed_on() -> None:
    seen: list[Event] = []
    event = Event("note", message="a")
    Stopwatch(keeping_beliefs(seen.append, []), lambda: 0.0)(event)
    assert seen == [event]


@pytest.mark.parametrize(
    ("losses", "harmed"),
    [
        ([0.1, 900.0, 950.0, 990.0], True),  # a rate that is far too high
        ([2.3, 2.0, 9.0, 8.0], True),  # a loss of the user's own
        ([2.3, 2.2, 2.1, 2.4], False),
        ([0.001, 0.02, 0.04, 0.05], False),  # a network that begins as its own teacher
        ([3.0, 1.0, 0.5, 0.4], False),
        ([0.1, 900.0], False),  # two steps say nothing
        ([], False),
    ],
)
def test_a_stage_whose_loss_rose_far_did_harm(losses: list[float], harmed: bool) -> None:
    assert diverged(list(enumerate(losses, 1))) is harmed
