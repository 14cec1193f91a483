"""Runs that are killed or interrupted inside a stage."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import Cut, Tiny, files, packed_bytes, recipe, timeless

from octavo._interruption import Interrupted, listening
from octavo.runs.run import run

pytestmark = pytest.mark.usefixtures("folder")

PRUNE = {"sparsity": 0.5, "epochs": 2, "learning_rate": 0.1}


class Dropping(Tiny):
    """Its network draws random numbers, and its batches are drawn one by one."""

    def model(self) -> Any:
        model: Any = super().model()
        model.insert(3, torch.nn.Dropout(0.3))
        return model.eval()

    def train_batches(self) -> Any:
        return _lazily(super().train_batches())


def _lazily(batches: Any) -> Any:
    class Batches:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Any:
            return ((x + 0.1 * torch.randn(x.shape), y) for x, y in batches)

    return Batches()


def timeless_files(folder: Path) -> dict[str, str]:
    """The files below a folder that have no times in them."""
    found = files(folder)
    return {name: found[name] if name.endswith(("safetensors", "yaml")) else "" for name in found}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"task": f"{__name__}:Dropping", "control": False},
    "pruned": {"prune": PRUNE, "control": False},
    "quantized inputs": {"activations": {"bits": 4}, "control": False},
    "momentum": {"retraining": {"learning_rate": 0.05, "momentum": 0.0}, "control": False},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_run_that_was_killed_inside_a_stage_ends_the_same(kind: str, folder: Path) -> None:
    settings = recipe(**{"retraining": {"learning_rate": 0.05, "labels": 0.5}} | SETTINGS[kind])
    whole = run(settings, folder / "whole" / "one")
    count = Tiny.losses
    for at in range(2, count + 1, 7 if kind == "plain" else 5):
        place = folder / str(at) / "one"
        Tiny.losses, Tiny.fail_at = 0, at
        with contextlib.suppress(Cut):
            run(settings, place, save_every=0.0)
        begun = Tiny.losses
        Tiny.losses, Tiny.fail_at = 0, None
        torch.manual_seed(99)
        assert timeless(run(settings, place)) == timeless(whole)
        assert Tiny.losses + begun <= count + 1 + 1  # no more than the step that was cut off
        assert timeless_files(place.parent) == timeless_files(folder / "whole")


def test_a_kill_between_a_stage_and_its_forgetting_does_no_harm(folder: Path) -> None:
    settings = recipe(control=False)
    whole = run(settings, folder.with_name("whole"))
    Tiny.losses, Tiny.fail_at = 0, 8
    with pytest.raises(Cut):
        run(settings, folder, save_every=0.0)
    inside = (folder / "quantized-stage.pt").read_bytes()
    Tiny.fail_at = None
    run(settings, folder)
    (folder / "result.json").unlink()
    (folder / "quantized-stage.pt").write_bytes(inside)
    assert timeless(run(settings, folder)) == timeless(whole)
    assert not (folder / "quantized-stage.pt").exists()


def test_other_settings_of_retraining_go_on_from_the_last_whole_stage(folder: Path) -> None:
    Tiny.fail_at = 9
    with pytest.raises(Cut):
        run(recipe(control=False), folder, save_every=0.0)
    assert (folder / "quantized-stage.pt").exists()
    Tiny.fail_at, Tiny.losses = None, 0
    slower = {"learning_rate": 0.01, "labels": 0.5}
    result = run(recipe(control=False, retraining=slower), folder)
    assert Tiny.losses == 6  # the second stage has four steps, and the third two
    assert [stage["learning_rate"] for stage in result["stages"]] == [0.05, 0.01, 0.01]


def test_state_inside_a_stage_is_kept_as_often_as_asked_whatever_the_clock_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    save = torch.save

    def note(content: Any, file: Any) -> None:
        if "training" in content:
            kept.append(content["training"]["done"])
        save(content, file)

    monkeypatch.setattr(torch, "save", note)
    run(recipe(control=False), folder / "a")
    assert kept == []
    run(recipe(control=False), folder / "b", save_every=0.0)
    assert kept == [1, 2, 3, 4, 5, 1, 2, 3, 1]  # not after the last step of a stage
    kept.clear()
    clock = iter(range(10**6, 0, -100))  # backwards
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    result = run(recipe(control=False), folder / "c", save_every=150.0)
    assert kept
    assert all(stage["seconds"] >= 0 for stage in result["stages"])


def interrupted_at(step: int, settings: Any, folder: Path, **options: Any) -> Interrupted:
    """Run until a signal comes during a step, and return what the run ends with."""
    loss = Tiny.loss

    def signal_at(task: Tiny, model: Any, batch: Any) -> Any:
        if Tiny.losses + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return loss(task, model, batch)

    with pytest.MonkeyPatch.context() as patch, listening() as interruption:
        patch.setattr(Tiny, "loss", signal_at)
        with pytest.raises(Interrupted) as caught:
            run(settings, folder, interruption=interruption, **options)
    return caught.value


@pytest.mark.parametrize("step", [1, 6, 8, 11, 12])
def test_a_signal_finishes_the_step_and_loses_nothing(step: int, folder: Path) -> None:
    settings = recipe(control=False)
    whole = run(settings, folder.with_name("whole"))
    Tiny.losses = 0
    stopped = interrupted_at(step, settings, folder)
    assert Tiny.losses == step
    assert stopped.status == 143
    ended = {6: 1, 12: 3}.get(step)  # a signal in the last step of a stage
    done = {1: "1/3, step 1 of 6", 8: "2/3, step 2 of 4", 11: "3/3, step 1 of 2"}.get(step)
    place = folder / ("quantized.pt" if ended else "quantized-stage.pt")
    said = f"stage {ended}" if ended else f"stage {done}"
    assert stopped.kept == f"quantized, {said} is kept in {place}"
    Tiny.losses = 0
    torch.manual_seed(99)
    assert timeless(run(settings, folder)) == timeless(whole)
    assert Tiny.losses == 12 - step
    assert packed_bytes(folder) == packed_bytes(folder.with_name("whole"))


def test_a_signal_while_a_stage_is_scored_does_not_lose_the_stage(folder: Path) -> None:
    settings = recipe(control=False)
    whole = run(settings, folder.with_name("whole"))
    score, calls = Tiny.score, list[int]()

    def signal_at(task: Tiny, model: Any) -> float:
        calls.append(1)
        if len(calls) == 2:  # after full precision, that of the first stage
            signal.raise_signal(signal.SIGINT)
        return score(task, model)

    with pytest.MonkeyPatch.context() as patch, listening() as interruption:
        patch.setattr(Tiny, "score", signal_at)
        with pytest.raises(Interrupted) as caught:
            run(settings, folder, interruption=interruption)
    kept = f"quantized, stage 1/3, step 6 of 6 is kept in {folder / 'quantized-stage.pt'}"
    assert (caught.value.status, caught.value.kept) == (130, kept)
    Tiny.losses = 0
    assert timeless(run(settings, folder)) == timeless(whole)
    assert Tiny.losses == 6


def test_a_signal_while_a_portion_freezes_says_what_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with listening() as interruption, monkeypatch.context() as patch:
        patch.setattr("octavo.inq.incremental.Incremental._freeze", freeze)
        with pytest.raises(Interrupted) as caught:
            run(recipe(control=False), folder, interruption=interruption)
    assert caught.value.kept == ""  # nothing was done yet
    assert not (folder / "quantized-stage.pt").exists()
