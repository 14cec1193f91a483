"""The course of a search: its front, its marked plans, its rewards."""

from octavo.report.course import LEAST, Course, plan_words, shown
from octavo.report.record import RunRecord


def test_the_front_has_what_no_other_trial_beats(searched: RunRecord) -> None:
    course = Course.of(searched)
    assert course is not None
    assert len(course.trials) == len(searched.course["trials"])
    for row in course.front:
        better = [t for t in course.trials if t["bytes"] <= row["bytes"]]
        assert max(t["objective"] for t in better) == row["objective"]


def test_the_plans_that_matter_are_marked(searched: RunRecord) -> None:
    course = Course.of(searched)
    assert course is not None
    marks = {row["mark"]: row["widths"] for row in course.marked}
    search = searched.result["search"]
    assert marks["chosen plan"] == search["plan"]
    assert marks["uniform plan"] == search["uniform"]
    assert marks["exact plan"] == search["exact"]


def test_a_divergence_is_shown_without_its_minus(searched: RunRecord) -> None:
    course = Course.of(searched)
    assert course is not None
    assert course.divergence
    assert all(row["shown"] > 0 for row in course.trials)
    assert shown(-0.25, divergence=True) == 0.25
    assert shown(0.0, divergence=True) == LEAST
    assert shown(-0.25, divergence=False) == -0.25


def test_the_best_reward_so_far_never_falls(searched: RunRecord) -> None:
    course = Course.of(searched)
    assert course is not None
    best = [row["best"] for row in course.rewards]
    assert best == sorted(best, reverse=True)
    assert best[-1] == min(row["shown"] for row in course.rewards)


def test_a_run_without_a_search_has_no_course(plain: RunRecord) -> None:
    assert Course.of(plain) is None


def test_plans_of_many_layers_are_short() -> None:
    assert plan_words({"a": 3, "b": "apot6"}) == "a 3, b apot6"
    assert plan_words({f"layer{n}": 2 for n in range(20)}) == " ".join(["2"] * 20)
