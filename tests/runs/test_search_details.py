"""The course of a search as data: all trials, the proposals, and what the policy believed."""

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.runs.tiny import Tiny, Watcher, searching

from octavo.dnq.belief import Belief
from octavo.dnq.reinforce import Reinforce
from octavo.dnq.searching import search
from octavo.plan import Budget
from octavo.runs.run import run
from octavo.runs.search_details import MOMENTS, search_details

FEW = partial(Reinforce, before=10, practice=1, after=5, imagined=16, proposed=4, patience=3)


def test_a_run_writes_the_course_of_its_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.dnq.agent.Reinforce", FEW)
    watcher = Watcher()
    wanted = {"budget": {"average_bits": 4}, "method": "dnq", "trials": 11}
    run(searching(search=wanted, epochs=0), folder, watcher)
    course = json.loads((folder / "search.json").read_text())
    assert course["layers"] == ["0", "3"]
    assert course["actions"] == [[2, 3, 4, 5]] * 2
    assert course["budget"] == "average_bits=4"
    assert [trial["choice"] for trial in course["trials"]] == [
        list(trial.choice) for trial in watcher.trials
    ]
    assert all(trial["file_bytes"] > 0 for trial in course["trials"])
    assert course["proposals"]
    for cheaper, dearer in itertools.pairwise(course["proposals"]):
        assert cheaper["file_bytes"] < dearer["file_bytes"]
        assert cheaper["objective"] < dearer["objective"]
    assert len(course["beliefs"]) == len(watcher.beliefs) > 0
    for moment in course["beliefs"]:
        assert np.sum(moment["probabilities"], 1) == pytest.approx(np.ones(2), abs=1e-3)
    rewards = [reward for belief in watcher.beliefs for reward in belief.rewards]
    assert course["rewards"] == rewards
    assert course["beliefs"][-1]["episode"] == len(rewards)


def test_of_many_beliefs_some_are_kept_the_first_and_the_last_among_them() -> None:
    result = search(
        Tiny().model(), Tiny().calibration(), budget=Budget(average_bits=3), method="uniform"
    )
    beliefs = [Belief(n, 1.0, np.full((2, 4), 0.25), 1.0, (0.0, -np.inf)) for n in range(1000)]
    course = search_details(result, beliefs)
    kept = [moment["measured"] for moment in course["beliefs"]]
    assert (len(kept), kept[0], kept[-1]) == (MOMENTS, 0, 999)
    assert course["rewards"][:3] == [0.0, None, 0.0]
    assert course["beliefs"][0]["episode"] == 2
    json.dumps(course, allow_nan=False)
