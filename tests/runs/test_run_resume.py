"""Runs that were cut off, or whose folder is another's, damaged or complete."""

import copy
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import Cut, Tiny, Watcher, files, packed_bytes, recipe, timeless

from octavo._locks import locked
from octavo.errors import FormatError, RecipeError, TrainingError
from octavo.runs.details import without_curves
from octavo.runs.run import run
from octavo.runs.run_folder import digest_of
from octavo.storage.checksum import sealed
from octavo.storage.packed import Packed

pytestmark = pytest.mark.usefixtures("folder")


WHOLE = 2 * (6 + 4 + 2)  # steps of the network and its control


@pytest.mark.parametrize("at", [2, 7, 12, 15, 24])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    at: int, folder: Path, half_run: Callable[..., Path], begun: Callable[..., Path]
) -> None:
    half_run(at)
    assert not (folder / "result.json").exists()
    torch.manual_seed(99)  # another process has another generator
    resumed = run(recipe(), folder)
    done = max(steps for steps in (0, 6, 10, 12, 18, 22) if steps < at)
    assert Tiny.losses == WHOLE - done  # whole stages are not done again
    whole = begun(None)
    expected = json.loads((whole / "one" / "result.json").read_text())
    assert timeless(resumed) == timeless(expected)
    assert set(files(folder.parent)) == set(files(whole))
    assert packed_bytes(folder) == packed_bytes(whole / "one")


def test_the_time_of_a_resumed_run_counts_what_was_done_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    Tiny.fail_at = 8  # in the second stage
    with pytest.raises(Cut):
        run(recipe(control=False), folder)
    earlier = torch.load(folder / "quantized.pt", weights_only=True)["log"][0]["seconds"]
    started = next(clock)
    result = run(recipe(control=False), folder)
    assert earlier > 0
    assert result["seconds"] == pytest.approx(earlier + next(clock) - started, abs=25)


def test_a_crash_while_the_checkpoint_is_written_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe(control=False), folder.parent.parent / "other")
    save, calls = torch.save, list[int]()

    def crash(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half of it")
            raise Cut
        save(content, file)

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(Cut):
        run(recipe(control=False), folder)
    assert set(files(folder)) == {"recipe.json", "quantized.pt"}
    assert len(torch.load(folder / "quantized.pt", weights_only=True)["log"]) == 1
    assert timeless(run(recipe(control=False), folder)) == timeless(whole)


def test_a_complete_run_does_nothing_the_second_time(
    whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole_run
    result = json.loads((folder / "result.json").read_text())
    before = files(folder.parent)
    monkeypatch.setattr("octavo._io.os.replace", None)
    watcher = Watcher()
    assert run(recipe(publish="elsewhere"), folder, watcher) == result
    assert watcher.notes == [
        f"{folder} is complete: nothing to do; name another --folder to run afresh"
    ]
    assert (files(folder.parent), watcher.steps) == (before, [])


def test_a_complete_run_is_not_passed_off_as_one_with_other_retraining(whole_run: Path) -> None:
    before = files(whole_run.parent)
    with pytest.raises(
        RecipeError,
        match=r"holds a complete run with retraining.learning_rate 0.05, the recipe says 0.01: "
        r"choose another --folder$",
    ):
        run(recipe(retraining={"learning_rate": 0.01}), whole_run)
    assert files(whole_run.parent) == before


def other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the task gives a network whose weights are others, with everything else as it
    was."""
    model = Tiny(shift=0.5).model()
    monkeypatch.setattr(Tiny, "model", lambda _: copy.deepcopy(model))


def test_a_complete_run_is_not_passed_off_as_one_of_other_weights(
    whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole_run
    before = files(folder.parent)
    other_weights(monkeypatch)
    said = (
        rf"^{folder} holds a complete run, the task's weights have changed "
        rf"since: delete it or choose another --folder$"
    )
    for control in (True, False):
        with pytest.raises(RecipeError, match=said):
            run(recipe(control=control), folder)
    assert files(folder.parent) == before


def test_half_a_run_does_not_go_on_with_other_weights(
    folder: Path, half_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_run(8, control=False)
    before = files(folder)
    other_weights(monkeypatch)
    with pytest.raises(
        FormatError,
        match=r"quantized.pt: .* \(RecipeError: the task's weights have changed since\); delete it",
    ):
        run(recipe(control=False), folder)
    assert files(folder) == before
    (folder / "quantized.pt").unlink()
    fresh = run(recipe(control=False), folder.with_name("fresh"))
    assert timeless(run(recipe(control=False), folder)) == timeless(fresh)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bits": 4}, "bits 3, the recipe says 4"),
        ({"seed": 1}, "seed 0, the recipe says 1"),
        ({"options": {"width": 7}}, r"options \{\}, the recipe says \{'width': 7\}"),
        ({"epochs": 1}, r"epochs \[1.5, 1.0, 0.5\], the recipe says 1.0"),
    ],
)
def test_a_folder_with_another_recipe_is_refused(
    changes: dict[str, Any], said: str, folder: Path, half_run: Callable[..., Path]
) -> None:
    half_run(8)
    before = files(folder)
    with pytest.raises(
        RecipeError, match=rf"^{folder} holds a run with {said}: choose another --folder$"
    ):
        run(recipe(**changes), folder)
    assert files(folder) == before


def test_a_stage_that_diverged_goes_on_with_a_lower_learning_rate(folder: Path) -> None:
    Tiny.spoil_at = 8  # the second step of the second stage
    with pytest.raises(
        TrainingError,
        match=r"^quantized, stage 2, step 2 of 4: the loss is nan; .*\(stage 1 is kept in .*pt\)$",
    ):
        run(recipe(), folder)
    kept = torch.load(folder / "quantized.pt", weights_only=True)["log"]
    Tiny.spoil_at, watcher = None, Watcher()
    result = run(recipe(retraining={"learning_rate": 0.01, "labels": 0.5}), folder, watcher)
    assert watcher.stages[0] == "quantized, stage 2/3"
    assert result["stages"][:1] == without_curves(kept)
    assert [stage["learning_rate"] for stage in result["stages"]] == [0.05, 0.01, 0.01]
    assert result["recipe"]["retraining"]["learning_rate"] == 0.01


def test_a_first_stage_that_diverged_leaves_no_checkpoint_and_can_be_run_again(
    folder: Path,
) -> None:
    Tiny.spoil_at = 2
    with pytest.raises(
        TrainingError,
        match=r"^quantized, stage 1, step 2 of 6: the loss is nan; .*\(no stage was done yet\)$",
    ):
        run(recipe(), folder)
    assert set(files(folder)) == {"recipe.json"}
    assert run(recipe(retraining={"learning_rate": 0.01}), folder)["score"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"this is no checkpoint",
    "pickle": lambda data: pickle.dumps(Evil(), protocol=2),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["one/quantized.pt", "control-*/control.pt"])
def test_a_damaged_checkpoint_is_named_in_one_line(
    which: str, damage: str, folder: Path, half_run: Callable[..., Path]
) -> None:
    half_run(20)  # in the control's second stage
    path = next(folder.parent.glob(which))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(
        FormatError, match=rf"^{path}: expected the last whole stage.*delete it to start over$"
    ) as caught:
        run(recipe(), folder)
    assert "\n" not in str(caught.value)
    assert not Path("owned").exists()
    path.unlink()
    assert run(recipe(), folder)["score"]


def test_a_checkpoint_of_another_network_is_refused(
    folder: Path, half_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_run(8)
    saved = torch.load(folder / "quantized.pt", weights_only=True)
    wide = Tiny(width=9).model()
    torch.save(sealed(saved | {"digest": digest_of(wide)}), folder / "quantized.pt")
    monkeypatch.setattr(Tiny, "model", lambda _: copy.deepcopy(wide))
    with pytest.raises(
        FormatError, match=r"quantized.pt: .* of another network .*expected exponents of shape"
    ):
        run(recipe(), folder)


@pytest.mark.parametrize("text", ["", '{"task"', "[1]", "\x00"])
@pytest.mark.parametrize("which", ["one/recipe.json", "one/result.json", "control-*/result.json"])
def test_damaged_json_is_named_in_one_line(which: str, text: str, whole_run: Path) -> None:
    folder = whole_run
    path = next(folder.parent.glob(which))
    path.write_text(text)
    if which.startswith("control"):
        (folder / "result.json").unlink()
    with pytest.raises(FormatError, match=rf"^{path}: damaged, ") as caught:
        run(recipe(), folder)
    assert "\n" not in str(caught.value)


PRUNE = {"sparsity": 0.5, "epochs": 2, "learning_rate": 0.1}


def test_a_run_that_was_cut_off_while_pruning_ends_the_same(folder: Path) -> None:
    settings = recipe(prune=PRUNE, control=False)
    run(settings, folder)
    for at in (5, 10):  # in the surgery, of 8 steps, and in the first stage
        place, Tiny.fail_at = folder.with_name(f"cut at {at}"), Tiny.losses + at
        with pytest.raises(Cut):
            run(settings, place)
        Tiny.fail_at = None
        torch.manual_seed(99)
        run(settings, place)
        assert (place / "packed.safetensors").read_bytes() == (
            folder / "packed.safetensors"
        ).read_bytes()


# The folder.


def test_a_second_process_is_refused(folder: Path, half_run: Callable[..., Path]) -> None:
    half_run(8)
    before = files(folder.parent)
    with (
        locked(folder, "this run"),
        pytest.raises(RecipeError, match=rf"^{folder}: another process works on this run now"),
    ):
        run(recipe(), folder)
    assert files(folder.parent) == before
    assert run(recipe(), folder)["score"]


@pytest.mark.parametrize("damage", ["gone", "junk", "other"])
def test_a_network_that_is_not_what_the_result_promises_is_made_again(
    damage: str, whole_run: Path
) -> None:
    path = whole_run / "packed.safetensors"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "junk":
        path.write_bytes(b"junk")
    else:  # a sound file, but another network
        packed = Packed.load(path)
        other = packed.layers["0"]
        other.codes[0] = other.codebook.zero
        packed.save(path)
    watcher = Watcher()
    before = Tiny.losses
    result = run(recipe(), whole_run, watcher)
    assert path.read_bytes() == whole
    assert Tiny.losses == before  # from the state of the run: nothing is retrained
    assert result["files"] == {"packed.safetensors": hashlib.sha256(whole).hexdigest()}
    assert watcher.notes[0] == (
        f"{whole_run}: packed.safetensors is gone or not what result.json promises; "
        "it is made again"
    )
    assert "is complete: nothing to do" in _notes(whole_run)[0]


@pytest.mark.parametrize("damage", ["gone", "junk"])
def test_an_older_result_promises_a_network_that_loads(damage: str, whole_run: Path) -> None:
    path = whole_run / "packed.safetensors"
    whole = path.read_bytes()
    result = json.loads((whole_run / "result.json").read_text())
    older = {key: value for key, value in result.items() if key not in ("files", "checksum")}
    (whole_run / "result.json").write_text(json.dumps(older))
    assert "is complete: nothing to do" in _notes(whole_run)[0]
    path.unlink() if damage == "gone" else path.write_bytes(b"junk")
    assert "it is made again" in _notes(whole_run)[0]
    assert path.read_bytes() == whole


def _notes(folder: Path) -> list[str]:
    watcher = Watcher()
    run(recipe(), folder, watcher)
    return watcher.notes


def test_an_export_that_was_lost_is_made_again(folder: Path) -> None:
    settings = recipe(method="ptq", export=["mx"])
    result = run(settings, folder)
    assert set(result["files"]) == {"packed.safetensors", "mx.safetensors"}
    (folder / "mx.safetensors").unlink()
    assert timeless_result(run(settings, folder)) == timeless_result(result)
    assert (folder / "mx.safetensors").exists()


def timeless_result(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", "checksum")}


@pytest.mark.parametrize("which", ["one/result.json", "control-*/result.json"])
def test_a_figure_that_was_changed_is_refused(which: str, whole_run: Path) -> None:
    path = next(whole_run.parent.glob(which))
    if which.startswith("control"):
        (whole_run / "result.json").unlink()
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1') if "seed" in text else "{}")
    if which.startswith("control"):
        content = json.loads(text)
        path.write_text(json.dumps(content | {"score": content["score"] + 1}))
    with pytest.raises(FormatError, match=rf"^{path}: damaged, its checksum is not that of its"):
        run(recipe(), whole_run)


def test_what_a_killed_process_left_is_removed(folder: Path, half_run: Callable[..., Path]) -> None:
    half_run(8)
    (folder / ".quantized.pt.abcd1234.tmp").write_bytes(b"half")
    run(recipe(), folder)
    assert not list(folder.glob(".*"))
