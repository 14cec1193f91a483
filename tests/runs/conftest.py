"""Runs of the tiny task: a folder for each test, and runs that several tests begin with."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import Cut, Tiny, recipe

from octavo.runs.job import SAVE_EVERY
from octavo.runs.run import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run; the task knows nothing of earlier tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a task adds to it
    monkeypatch.setattr("octavo._io.os.fsync", lambda _: None)  # no power cut is tested: faster
    Tiny.reset()
    with torch.random.fork_rng(devices=[]):
        yield tmp_path / "runs" / "one"
    Tiny.reset()


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the folder of folders of a run that was cut off, once for each way to call it."""
    made: dict[str, Path] = {}

    def begin(fail_at: int | None, **changes: Any) -> Path:
        key = repr((fail_at, changes))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("begun")
            Tiny.reset()
            Tiny.fail_at = fail_at
            save_every = changes.pop("save_every", SAVE_EVERY)
            with contextlib.suppress(Cut):
                run(recipe(**changes), made[key] / "one", save_every=save_every)
            Tiny.reset()
        return made[key]

    return begin


@pytest.fixture
def half_run(folder: Path, begun: Callable[..., Path]) -> Callable[..., Path]:
    """Put the run that was cut off at the given call of the loss into this test's folder."""

    def put(fail_at: int | None, **changes: Any) -> Path:
        shutil.copytree(begun(fail_at, **changes), folder.parent, dirs_exist_ok=True)
        return folder

    return put


@pytest.fixture
def begun_inside(half_run: Callable[..., Path], folder: Path) -> Callable[..., Path]:
    """Put a run into this test's folder that has files of every kind of state: it is complete but
    for its result, and has the state inside its last stage.
    """

    def put() -> Path:
        half_run(None, warmup=1)
        half_run(4 + 10 + 2, warmup=1, save_every=0.0)  # in the last stage of the network
        for result in folder.parent.glob("*/result.json"):
            result.unlink()
        return folder

    return put


@pytest.fixture
def whole_run(half_run: Callable[..., Path]) -> Path:
    """A complete run of the plain recipe, with its control, in this test's folder."""
    return half_run(None)
