"""Runs: what they leave behind, what they report, and what of a task or recipe is refused."""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import (
    CLASSES,
    EPOCH,
    INPUTS,
    Cut,
    Normed,
    Tiny,
    Watcher,
    files,
    recipe,
)
from torch import nn

from octavo.errors import ExportError, FormatError, OctavoError, PlanError, RecipeError
from octavo.inq.incremental import Incremental
from octavo.runs.recipe import make_recipe
from octavo.runs.run import publish, run
from octavo.runs.run_folder import digest_of
from octavo.runs.task import model_of
from octavo.storage.packed import Packed

pytestmark = pytest.mark.usefixtures("folder")


def test_the_result_says_what_was_reached_and_what_it_cost(folder: Path) -> None:
    watcher, task = Watcher(), Tiny()
    result = run(recipe(bits={"0": 3, "3": 5}), folder, watcher)
    assert json.loads((folder / "result.json").read_text()) == result
    assert set(files(folder.parent)) == {
        *(
            f"one/{name}"
            for name in (
                "details.json",
                "recipe.json",
                "quantized.pt",
                "packed.safetensors",
                "result.json",
            )
        ),
        *(
            f"{next(folder.parent.glob('control-*')).name}/{name}"
            for name in ("control.pt", "result.json")
        ),
    }
    model = task.model()
    assert result["float_score"] == task.score(model)
    packed = Packed.load(folder / "packed.safetensors")
    packed.apply(model)
    assert result["score"] == task.score(model) != result["float_score"]
    first, last = INPUTS * 6, 6 * CLASSES
    rest = 6 + 4 * 6 + CLASSES  # a bias, the norm's four vectors, a bias
    assert result["weights"] == first + last
    assert result["nominal_bits"] == pytest.approx((3 * first + 5 * last) / (first + last))
    assert result["other_bytes"] == 4 * rest + 8  # and the norm's counter
    assert result["float_bytes"] == 4 * (first + last + rest) + 8
    assert result["file_bytes"] == (folder / "packed.safetensors").stat().st_size
    assert result["ratio"] == pytest.approx(result["float_bytes"] / result["file_bytes"])
    assert result["stored_bits"] == packed.stored_bits
    assert 0 < result["entropy_bytes"] <= (3.17 * first + 4.09 * last) / 8
    assert [(s["portion"], s["epochs"], s["learning_rate"]) for s in result["stages"]] == [
        (0.5, 1.5, 0.05),
        (0.8, 1.0, 0.05),
        (1.0, 0.5, 0.05),
    ]
    assert all(stage["loss"] > 0 for stage in result["stages"])
    assert result["recipe"]["bits"] == {"0": 3, "3": 5}
    assert make_recipe(result["recipe"], "again") == recipe(bits={"0": 3, "3": 5})
    assert result["environment"]["torch"] == torch.__version__
    assert result["float_digest"] == digest_of(Tiny().model())
    assert result["labels_used"] is True
    assert isinstance(result["control_score"], float)


def test_the_observer_sees_every_stage_and_step(folder: Path) -> None:
    watcher = Watcher()
    run(
        recipe(epochs=1), folder, watcher
    )  # the last portion gets no epochs, unless it is given some
    assert watcher.stages == [
        "quantized, stage 1/3",
        "quantized, stage 2/3",
        "control, stage 1/3",
        "control, stage 2/3",
    ]
    assert [p.done for p in watcher.steps] == 4 * list(range(1, EPOCH + 1))
    assert [note.rpartition(":")[0] for note in watcher.notes] == [
        "full precision",
        "quantized, packed and loaded again",
        "control, full precision trained equally long",
    ]


def test_without_labels_the_result_says_so_and_the_tasks_loss_is_never_called(folder: Path) -> None:
    result = run(recipe(retraining={}, control=False), folder)
    assert result["labels_used"] is False
    assert "control_score" not in result
    assert Tiny.losses == 0
    assert not list(folder.parent.glob("control-*"))


def test_what_cannot_be_exported_for_want_of_a_library_is_known_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(forms: tuple[str, ...]) -> None:
        raise ExportError(f"ONNX needs onnx for {forms[0]}")

    monkeypatch.setattr(sys.modules["octavo.runs.run"], "check_forms", refuse)
    with pytest.raises(ExportError, match=r"^ONNX needs onnx for lut$"):
        run(recipe(export=["lut"]), folder)
    assert not folder.exists()


def test_a_coding_without_its_library_is_known_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise FormatError("the coder needs its library")

    monkeypatch.setattr(sys.modules["octavo.storage.coding.small"], "_library", missing)
    with pytest.raises(FormatError, match=r"^the coder needs its library$"):
        run(recipe(coding="small"), folder)
    assert not folder.exists()


def test_options_that_json_writes_otherwise_are_still_the_same_recipe(folder: Path) -> None:
    settings = recipe(
        control=False,
        task="tests.runs.tiny:Dated",
        options={"day": dt.date(2024, 2, 29), "pair": (1, 2)},
    )
    Tiny.fail_at = 8
    with pytest.raises(Cut):
        run(settings, folder)
    assert run(settings, folder)["recipe"]["options"] == {
        "day": "2024-02-29",
        "pair": [1, 2],
    }


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"bits": {"conv9": 3}}, PlanError),
        ({"bits": {}}, PlanError),
        ({"prune": {"sparsity": {"conv9": 0.5}}, "warmup": 1}, PlanError),
        ({"task": "nothing"}, RecipeError),
    ],
)
def test_a_recipe_that_does_not_fit_leaves_nothing_and_can_be_mended(
    changes: dict[str, Any], error: type[OctavoError], folder: Path
) -> None:
    Tiny.losses = 0
    with pytest.raises(error):
        run(recipe(**changes), folder)
    assert not folder.exists()
    assert Tiny.losses == 0
    assert run(recipe(control=False), folder)["score"]


def test_a_network_without_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "model", lambda _: nn.BatchNorm1d(INPUTS))
    with pytest.raises(
        PlanError,
        match=r"^BatchNorm1d: expected a model with layers that can be quantized, found none$",
    ):
        run(recipe(), folder)
    assert not folder.exists()


def test_a_task_that_hands_out_one_network_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Tiny().model()  # its own teacher and its own control, if nobody looked
    monkeypatch.setattr(Tiny, "model", lambda _: one)
    with pytest.raises(
        RecipeError,
        match=r"^task '.*:Tiny': expected a new copy of the network from every call of model\(\)",
    ):
        run(recipe(), folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    "call", range(1, 6)
)  # for the network, its teacher, the packed file, the control and its teacher
def test_a_model_that_fails_is_named_with_its_task(
    call: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls, error = Tiny.model, list[int](), ZeroDivisionError("two\nlines")

    def fail(task: Tiny) -> nn.Module:
        calls.append(1)
        if len(calls) == call:
            raise error
        return model(task)

    monkeypatch.setattr(Tiny, "model", fail)
    said = r"^task '.*:Tiny': its model\(\) failed: ZeroDivisionError: two lines \(.*, line \d+\)$"
    with pytest.raises(RecipeError, match=said) as caught:
        run(recipe(), folder)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [OctavoError("no data"), FormatError("damaged"), Cut("stop")])
def test_what_octavo_refuses_in_a_model_passes_unchanged(error: BaseException) -> None:
    class Refuses(Tiny):
        def model(self) -> nn.Module:
            raise error

    with pytest.raises(type(error)) as caught:
        model_of(Refuses(), "refuses")
    assert caught.value is error


def test_the_teachers_options_are_laid_over_the_tasks(folder: Path) -> None:
    plain = run(recipe(retraining={}, options={"width": 7}, control=False), folder)
    Tiny.made.clear()
    other = folder.with_name("other")
    taught = run(
        recipe(retraining={}, options={"width": 7}, teacher={"shift": 3.0}, control=False), other
    )
    assert Tiny.made == [{"width": 7, "shift": 0.0}, {"width": 7, "shift": 3.0}]
    assert taught["float_score"] == plain["float_score"]
    assert taught["stages"][0]["loss"] > 10 * plain["stages"][0]["loss"]


def test_a_seed_repeats_a_run_and_another_seed_does_not(folder: Path) -> None:
    networks: list[str] = []
    for name, seed in (
        ("a", 3),
        ("b", 3),
        ("c", 4),
        ("d", 3 + (1 << 16)),
    ):  # torch's generator takes 32 bits of any seed
        torch.manual_seed(len(networks))
        run(recipe(seed=seed, control=False), folder.with_name(name))
        networks.append(files(folder.with_name(name))["packed.safetensors"])
    assert networks[0] == networks[1]
    assert len(set(networks)) == 3


def test_the_largest_seed_works(folder: Path) -> None:
    assert run(recipe(seed=(1 << 32) - 1, control=False), folder)["score"]


def test_a_score_that_is_a_tensor_becomes_a_number(folder: Path) -> None:
    result = run(recipe(task="tests.runs.tiny:Rounds"), folder)
    assert {type(result[key]) for key in ("float_score", "score", "control_score")} == {float}


def test_publishing_copies_the_result_and_the_network_beside_the_recipe(folder: Path) -> None:
    settings = recipe(publish="results/tiny", control=False)
    run(settings, folder)
    assert publish(recipe(), Path("benchmarks/r.yaml"), folder) == []
    stem = Path("benchmarks/results/tiny")
    targets = [Path(f"{stem}.json"), Path(f"{stem}.safetensors")]
    for _ in range(2):  # a second time over the first
        assert publish(settings, Path("benchmarks/r.yaml"), folder) == targets
    assert [path.read_bytes() for path in targets] == [
        (folder / n).read_bytes() for n in ("result.json", "packed.safetensors")
    ]
    assert len(files(Path("benchmarks"))) == 2


def test_other_tensors_can_be_stored_in_float16(folder: Path) -> None:
    result = run(recipe(floats="float16", control=False), folder)
    rest = 6 + 4 * 6 + CLASSES
    assert result["other_bytes"] == 2 * rest + 8
    assert result["float_bytes"] == 4 * (48 + rest) + 8
    assert result["ratio"] == pytest.approx(result["float_bytes"] / result["file_bytes"])
    model = Tiny().model()
    Packed.load(folder / "packed.safetensors").apply(model)
    assert result["score"] == Tiny().score(model)


def test_norms_can_be_folded(folder: Path) -> None:
    """The score is that of the folded file, whose statistics are gone; the closed form folds
    too."""
    for method in ("inq", "ptq"):
        place = folder.with_name(method)
        result = run(
            recipe(task="tests.runs.tiny:Normed", floats="folded", method=method, control=False),
            place,
        )
        model = Normed().model()
        Packed.load(place / "packed.safetensors").apply(model)
        assert result["score"] == Normed().score(model)
        assert not model.state_dict()["1.running_mean"].any()
        assert result["float_bytes"] == 4 * (48 + 6 + 4 * 6 + CLASSES) + 8
        assert result["other_bytes"] == 2 * (6 + 2 * 6 + CLASSES) + 2 * 6 + 8


@pytest.mark.parametrize("method", ["inq", "ptq"])
def test_a_budget_of_calibration_finds_the_rate_and_folds_norms_last(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INQ goes on with the rate that was found, and its norms train on as they were."""
    rates = []

    def incremental(*arguments: Any, rate: float, **settings: Any) -> Incremental:
        rates.append(rate)
        return Incremental(*arguments, rate=rate, **settings)

    monkeypatch.setattr("octavo.runs.quantize.Incremental", incremental)
    wanted: dict[str, Any] = {
        "task": "tests.runs.tiny:Normed",
        "start": "ptq",
        "method": method,
        "control": False,
        "epochs": 0,
        "bits": "apot5",
    }
    limit = run(recipe(**wanted, floats="folded"), folder.with_name("plain"))["file_bytes"] - 5
    rates.clear()
    result = run(recipe(**wanted, ptq={"budget": {"bytes": limit}}), folder)
    assert result["rate"] > 0
    assert rates == ([result["rate"]] if method == "inq" else [])
    assert result["file_bytes"] <= limit
    assert [layer["name"] for layer in result["layers"]] == ["0", "3"]
    stored = dict(Packed.load(folder / "packed.safetensors").floats)
    assert torch.float16 in {value.dtype for value in stored.values()}
    assert result["float_bytes"] == 4 * (48 + 6 + 4 * 6 + CLASSES) + 8
