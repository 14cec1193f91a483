"""Finished runs for the tests of the report, each made once."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import Tiny, recipe

from octavo.dnq.reinforce import Reinforce
from octavo.report.record import RunRecord
from octavo.runs.run import run
from octavo.runs.run_folder import write_json

FEW = partial(Reinforce, before=10, practice=1, after=5, imagined=16, proposed=4, patience=3)


def made(folder: Path, **changes: Any) -> Path:
    """The folder of a finished run of the tiny task."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr("octavo.dnq.agent.Reinforce", FEW)
        patch.setattr("octavo._io.os.fsync", lambda _: None)
        patch.setattr(sys, "path", list(sys.path))
        Tiny.reset()
        run(recipe(**changes), folder)
        Tiny.reset()
    return folder


@pytest.fixture(scope="session")
def searched_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policy learned, with retraining and a control."""
    wanted = {
        "budget": {"average_bits": 5},
        "method": "dnq",
        "options": [2, 3, 4, 5, 6],
        "trials": 19,
    }
    folder = tmp_path_factory.mktemp("searched") / "searched"
    return made(folder, bits=None, search=wanted, start="ptq")


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that only calibrates, and leaves a layer in float."""
    folder = tmp_path_factory.mktemp("plain") / "plain"
    return made(folder, bits={"0": 3}, method="ptq")


@pytest.fixture(scope="session")
def searched(searched_run: Path) -> RunRecord:
    return RunRecord.load(searched_run)


@pytest.fixture(scope="session")
def plain(plain_run: Path) -> RunRecord:
    return RunRecord.load(plain_run)


@pytest.fixture(scope="session")
def large_run(tmp_path_factory: pytest.TempPathFactory, searched_run: Path) -> Path:
    """The folder of a run as a search with 500 trials over 57 layers would leave it."""
    folder = tmp_path_factory.mktemp("large") / "large"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    names = [
        f"layer{stage}.{block}.conv{conv}"
        for stage in (1, 2, 3)
        for block in range(9)
        for conv in (1, 2)
    ]
    names = ["conv1", "layer2.0.shortcut", *names, "linear"]
    result = json.loads((searched_run / "result.json").read_text())
    choices = torch.randint(4, (500, len(names)), generator=generator).tolist()
    plans = [dict(zip(names, [2 + index for index in choice], strict=True)) for choice in choices]
    result["search"] |= {"plan": plans[0], "uniform": plans[1], "exact": plans[2], "finalists": []}
    course = json.loads((searched_run / "search.json").read_text())
    course |= {
        "layers": names,
        "actions": [[2, 3, 4, 5]] * len(names),
        "trials": [
            {
                "choice": choice,
                "objective": -0.1 - index / 100,
                "reward": -0.1,
                "file_bytes": 90_000 + sum(choice),
            }
            for index, choice in enumerate(choices)
        ],
        "proposals": [],
        "rewards": [-0.5 - index / 1000 for index in range(500)],
        "beliefs": [
            {
                "episode": 8 * moment,
                "measured": moment,
                "entropy": 3.0,
                "probabilities": [[0.25] * 4] * len(names),
            }
            for moment in range(1, 61)
        ],
    }
    details = json.loads((searched_run / "details.json").read_text())
    layer = details["layers"][0]
    details["layers"] = [layer | {"name": name} for name in names]
    for name, content in (("result", result), ("search", course), ("details", details)):
        write_json(folder / f"{name}.json", content)
    return folder
