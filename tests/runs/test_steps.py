"""The steps that retrain: warm-up, surgery and the control, against the same by hand."""

import copy
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.runs.tiny import (
    Sparse,
    Tiny,
    Watcher,
    files,
    recipe,
    stages_by_hand,
    warm_up_by_hand,
)

from octavo.errors import FormatError, TrainingError
from octavo.inq.incremental import Incremental
from octavo.progress import silent
from octavo.pruning.surgery import Surgery
from octavo.ptq.calibration import calibrate
from octavo.runs import steps
from octavo.runs.job import Job
from octavo.runs.run import run
from octavo.runs.training import retrain
from octavo.storage.packed import Packed

pytestmark = pytest.mark.usefixtures("folder")


def test_a_warm_up_in_full_precision_comes_first_and_is_shared(folder: Path) -> None:
    settings = recipe()
    task = Tiny()
    result = run(recipe(warmup=2, epochs=0), folder)
    warm = task.model()
    warm_up_by_hand(warm, 2, settings)
    assert result["control_score"] == task.score(warm)  # its stages have no epochs
    assert [(stage["portion"], stage["epochs"]) for stage in result["stages"]] == [
        (0, 2),
        (0.5, 0),
        (0.8, 0),
        (1, 0),
    ]
    incremental = Incremental(warm, {"0": 3, "3": 3}, portions=(0.5, 0.8, 1.0))
    list(incremental)
    incremental.finish().save(folder / "by_hand")
    assert files(folder)["by_hand"] == files(folder)["packed.safetensors"]
    done = Tiny.losses
    run(recipe(warmup=2, epochs=0, bits=2, start="ptq"), folder.with_name("two"))
    assert Tiny.losses == done


def test_the_control_is_trained_just_as_long_in_the_same_way(folder: Path) -> None:
    """Against a control made by hand: the same seeds, the whole float network, stage by stage."""
    settings = recipe()
    task = Tiny()
    watcher = Watcher()
    result = run(settings, folder, watcher)
    model = task.model()
    stages_by_hand(range(3), model, settings)
    assert result["control_score"] == task.score(model) != result["float_score"]
    assert len(watcher.steps) == 2 * (6 + 4 + 2)


def other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the task gives a network whose weights are others, with everything else as it
    was."""
    model = Tiny(shift=0.5).model()
    monkeypatch.setattr(Tiny, "model", lambda _: copy.deepcopy(model))


def test_other_weights_have_another_control(
    whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole_run
    other_weights(monkeypatch)
    watcher = Watcher()
    run(recipe(), folder.with_name("two"), watcher)
    assert watcher.stages[3:] == ["control, stage 1/3", "control, stage 2/3", "control, stage 3/3"]
    assert len(list(folder.parent.glob("control-*"))) == 2


def test_a_control_that_was_left_out_can_be_had_later(folder: Path) -> None:
    without = run(recipe(control=False), folder)
    network, watcher = files(folder)["packed.safetensors"], Watcher()
    result = run(recipe(), folder, watcher)
    assert watcher.stages == ["control, stage 1/3", "control, stage 2/3", "control, stage 3/3"]
    assert files(folder)["packed.safetensors"] == network
    assert result["control_score"] != result["float_score"]
    assert result["score"] == without["score"]


def test_recipes_that_differ_in_bits_share_their_control_and_others_do_not(folder: Path) -> None:
    results, stages = [], []
    for name, changes in (
        ("a", {}),
        ("b", {"bits": {"0": 2}, "order": "relative"}),
        ("c", {"seed": 1}),
        ("d", {"epochs": 1}),
    ):
        watcher = Watcher()
        results.append(run(recipe(**changes), folder.with_name(name), watcher))
        stages.append([stage for stage in watcher.stages if stage.startswith("control")])
    assert [len(some) for some in stages] == [3, 0, 3, 2]
    assert results[0]["control_score"] == results[1]["control_score"]
    assert len({result["control_score"] for result in results}) == 3
    assert len(list(folder.parent.glob("control-*"))) == 3


def test_a_control_of_an_earlier_version_is_found_and_one_with_accumulation_is_another(
    folder: Path,
) -> None:
    def name(**retraining: float) -> str:
        given = recipe(retraining={"learning_rate": 0.05, "labels": 0.5} | retraining)
        return steps._control_folder(Job(given, Tiny(), folder, "abc", silent)).name

    assert name() == name(accumulate=1) == "control-f0e5ee91b7ee"
    assert name(accumulate=2) != name()


@pytest.mark.parametrize("text", ["{}", '{"score": "high"}'])
def test_a_control_without_a_score_is_damaged(text: str, whole_run: Path) -> None:
    folder = whole_run
    (path,) = folder.parent.glob("control-*/result.json")
    path.write_text(text)
    (folder / "result.json").unlink()
    with pytest.raises(
        FormatError, match=rf"^{path}: damaged, expected a number called score, got "
    ):
        run(recipe(), folder)


def test_a_control_that_diverged_leaves_the_network_as_it_is(folder: Path) -> None:
    Tiny.spoil_at = 13
    with pytest.raises(TrainingError, match=r"^control, stage 1, step 1 of 6: the loss is nan"):
        run(recipe(), folder)
    network, watcher = files(folder)["packed.safetensors"], Watcher()
    run(recipe(), folder, watcher)
    assert watcher.stages == ["control, stage 1/3", "control, stage 2/3", "control, stage 3/3"]
    assert files(folder)["packed.safetensors"] == network


PRUNE = {"sparsity": 0.5, "epochs": 2, "learning_rate": 0.1}


def test_surgery_comes_before_the_stages_and_its_zeros_stay(folder: Path) -> None:
    """Against surgery and stages made by hand."""
    settings = recipe(warmup=1, prune=PRUNE, start="ptq", bits=4, control=False)
    task = Tiny()
    result = run(settings, folder)
    model = task.model()
    warm_up_by_hand(model, 1, settings)
    surgery = Surgery(model, 0.5, steps=8)
    torch.manual_seed(zlib.crc32(b"0 -2"))
    faster = replace(settings.retraining, learning_rate=0.1)
    retrain(
        model,
        task,
        2,
        faster,
        teacher=task.model().requires_grad_(False),
        progress=lambda _: surgery.step(),
    )
    masks = surgery.finish()
    assert sum(int((~mask).sum()) for mask in masks.values()) == 24  # of 48
    calibrate(model, {"0": 4, "3": 4}, task.calibration()).apply(model)
    incremental = Incremental(model, {"0": 4, "3": 4}, portions=(0.5, 0.8, 1.0), masks=masks)
    stages_by_hand(incremental, model, settings)
    incremental.finish().save("by-hand")
    assert Path("by-hand").read_bytes() == (folder / "packed.safetensors").read_bytes()
    packed = Packed.load(folder / "packed.safetensors")
    assert all(
        bool((packed.layers[name].weight()[~mask] == 0).all()) for name, mask in masks.items()
    )
    weights = torch.cat([layer.weight().flatten() for layer in packed.layers.values()])
    assert result["sparsity"] == float((weights == 0).double().mean()) >= 0.5
    assert [(s["portion"], s["epochs"], s["learning_rate"]) for s in result["stages"][:3]] == [
        (0, 1, 0.05),
        (0, 2, 0.1),
        (0.5, 1.5, 0.05),
    ]


def test_the_control_of_a_pruned_network_is_whole_and_trained_as_long(folder: Path) -> None:
    settings, task, watcher = recipe(prune=PRUNE), Tiny(), Watcher()
    result = run(settings, folder, watcher)
    model = task.model()
    torch.manual_seed(zlib.crc32(b"0 -2"))
    retrain(
        model,
        task,
        2,
        replace(settings.retraining, learning_rate=0.1),
        teacher=task.model().requires_grad_(False),
    )
    stages_by_hand(range(3), model, settings)
    assert result["control_score"] == task.score(model)
    assert len(watcher.steps) == 2 * (8 + 6 + 4 + 2)


def test_a_task_whose_network_is_sparse_keeps_its_zeros_through_ptq(
    folder: Path,
) -> None:
    for start in ("ptq", "refit", "float"):
        run(
            recipe(task="tests.runs.tiny:Sparse", start=start, control=False),
            folder.with_name(start),
        )
        packed = Packed.load(folder.with_name(start) / "packed.safetensors")
        zeros = Sparse().model().get_parameter("0.weight") == 0
        assert bool((packed.layers["0"].weight()[zeros] == 0).all())
