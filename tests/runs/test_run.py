"""Runs: what they leave behind, and that a run that was cut off ends as if it had not been."""

import copy
import datetime as dt
import hashlib
import json
import os
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.activations.quantization import quantize_activations
from octavo.dnq.evaluator import Trial
from octavo.dnq.searching import search
from octavo.errors import (
    BudgetError,
    ExportError,
    FormatError,
    OctavoError,
    PlanError,
    RecipeError,
    TrainingError,
)
from octavo.inq.incremental import Incremental
from octavo.plan import Budget, Plan
from octavo.pruning.surgery import Surgery
from octavo.ptq.calibration import LayerResult, calibrate
from octavo.runs.folder import digest_of
from octavo.runs.recipe import Recipe, make_recipe
from octavo.runs.run import publish, run
from octavo.runs.task import Batch, model_of
from octavo.runs.training import Progress, retrain
from octavo.storage.packed import Packed

EPOCH, ROWS, INPUTS, CLASSES = 4, 8, 5, 3


class Cut(BaseException):
    """What ends a process from outside; nothing catches it."""


class Tiny:
    """A small network with a norm; counts what is asked of it, and fails where it is told to."""

    made: ClassVar[list[dict[str, Any]]] = []
    losses = 0  # calls of loss since the test began
    fail_at: int | None = None  # the call of loss that raises
    spoil_at: int | None = None  # the call of loss that is NaN

    def __init__(self, width: int = 6, shift: float = 0.0) -> None:
        Tiny.made.append({"width": width, "shift": shift})
        self.width, self.shift = width, shift

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            first, last = nn.Linear(INPUTS, self.width), nn.Linear(self.width, CLASSES)
        with torch.no_grad():
            last.bias[0] += self.shift
        return nn.Sequential(first, nn.BatchNorm1d(self.width), nn.ReLU(), last).eval()

    def calibration(self) -> list[Tensor]:
        return [inputs for inputs, _ in examples(0)]

    def train_batches(self) -> list[tuple[Tensor, Tensor]]:
        batches = examples(1)
        return [
            (x + 0.1 * torch.randn(x.shape), y)
            for x, y in (batches[i] for i in torch.randperm(EPOCH))
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        Tiny.losses += 1
        if Tiny.losses == Tiny.fail_at:
            raise Cut
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss * torch.nan if Tiny.losses == Tiny.spoil_at else loss

    def score(self, model: nn.Module) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            score = -sum(F.cross_entropy(model(x), y).item() for x, y in examples(2))
        model.train(training)
        return score


class Rounds(Tiny):
    """Its score is a tensor, as many people's is."""

    def score(self, model: nn.Module) -> Any:
        return torch.tensor(super().score(model))


class Sparse(Tiny):
    """Its first layer has lost half of its weights."""

    def model(self) -> nn.Module:
        model: Any = super().model()
        model[0].weight.data.view(-1)[::2] = 0
        return model  # type: ignore[no-any-return]


def examples(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(EPOCH, ROWS, INPUTS, generator=generator)
    return [(x, x[:, :CLASSES].argmax(1)) for x in inputs]


class Watcher:
    """An observer that writes down what it sees."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.steps: list[Progress] = []
        self.layers: list[LayerResult] = []
        self.searches: list[int] = []
        self.trials: list[Trial] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, index: int, stages: int) -> None:
        self.stages.append(f"{name} {index + 1}/{stages}")

    def step(self, progress: Progress) -> None:
        self.steps.append(progress)

    def layer(self, error: LayerResult) -> None:
        self.layers.append(error)

    def searching(self, trials: int) -> None:
        self.searches.append(trials)

    def trial(self, trial: Trial) -> None:
        self.trials.append(trial)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a task adds to it
    for name, value in (("made", []), ("losses", 0), ("fail_at", None), ("spoil_at", None)):
        monkeypatch.setattr(Tiny, name, value)
    with torch.random.fork_rng(devices=[]):
        yield tmp_path / "runs" / "one"


def recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "task": f"{__name__}:Tiny",
        "bits": 3,
        "start": "float",
        "portions": [0.5, 0.8, 1.0],
        "epochs": [1.5, 1, 0.5],
        "retraining": {"learning_rate": 0.05, "labels": 0.5},
    }
    return make_recipe(content | changes, "test")


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs between two runs of the same recipe."""
    result = copy.deepcopy(result)
    for timed in (result, *result["stages"]):
        del timed["seconds"]
    return result


def test_the_result_says_what_was_reached_and_what_it_cost(folder: Path) -> None:
    watcher, task = Watcher(), Tiny()
    result = run(recipe(bits={"0": 3, "3": 5}), folder, watcher)
    assert json.loads((folder / "result.json").read_text()) == result
    assert set(files(folder.parent)) == {
        *(
            f"one/{name}"
            for name in ("recipe.json", "quantized.pt", "packed.safetensors", "result.json")
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
    assert watcher.stages == ["quantized 1/3", "quantized 2/3", "control 1/3", "control 2/3"]
    assert [p.step for p in watcher.steps] == 4 * list(range(1, EPOCH + 1))
    assert [note.rpartition(":")[0] for note in watcher.notes] == [
        "full precision",
        "quantized, packed and loaded again",
        "control, full precision trained equally long",
    ]


def test_quantized_inputs_train_through_the_warm_up_and_every_stage(folder: Path) -> None:
    """Against the same by hand; cut off, it ends the same; teacher and control stay float."""
    settings, task, watcher = (
        recipe(warmup=1, activations={"bits": {"0": 8, "3": 4}}),
        Tiny(),
        Watcher(),
    )
    result = run(settings, folder, watcher)
    model, teacher = task.model(), task.model().requires_grad_(False)
    quantize_activations(model, task.calibration(), {"0": 8, "3": 4})
    torch.manual_seed(zlib.crc32(b"0 -1"))
    retrain(model, task, 1, settings.retraining, teacher=teacher)
    incremental = Incremental(model, {"0": 3, "3": 3}, portions=(0.5, 0.8, 1.0))
    for stage, epochs in zip(incremental, (1.5, 1.0, 0.5), strict=True):
        torch.manual_seed(zlib.crc32(f"0 {stage.index}".encode()))
        retrain(model, task, epochs, settings.retraining, teacher=teacher)
    incremental.finish().save("by-hand")
    network = (folder / "packed.safetensors").read_bytes()
    assert network == Path("by-hand").read_bytes()
    assert result["activation_bits"] == {"0": 8, "3": 4}
    assert result["score"] == task.score(model)
    assert "inputs of 2 layers quantized, 4 to 8 bits" in watcher.notes
    plain = run(recipe(warmup=1), folder.with_name("plain"), Watcher())
    assert result["control_score"] == plain["control_score"]
    assert "activation_bits" not in plain
    assert len(list(folder.parent.glob("warmup-*"))) == 2  # quantized inputs have one of their own
    for at in (2, 8):  # in the warm-up of 4 steps, and in the first stage
        Tiny.losses, Tiny.fail_at = 0, at
        again = folder.parent.parent / f"cut-{at}" / "one"
        with pytest.raises(Cut):
            run(settings, again, Watcher())
        Tiny.fail_at = None
        run(settings, again, Watcher())
        assert (again / "packed.safetensors").read_bytes() == network


def test_the_closed_form_and_a_search_see_quantized_inputs(folder: Path) -> None:
    task, model = Tiny(), Tiny().model()
    quantize_activations(model, task.calibration(), 4, power_of_two=True)
    activations = {"bits": 4, "power_of_two": True, "learned": False}
    run(recipe(method="oneshot", activations=activations), folder, Watcher())
    calibrate(model, {"0": 3, "3": 3}, task.calibration()).save("by-hand")
    assert (folder / "packed.safetensors").read_bytes() == Path("by-hand").read_bytes()
    wanted = {"budget": {"average_bits": 3}, "trials": 20}
    other = folder.with_name("searched")
    result = run(
        recipe(method="oneshot", activations=activations, bits=None, search=wanted),
        other,
        Watcher(),
    )
    found = search(model, task.calibration(), budget=Budget(average_bits=3), trials=20)
    assert (result["search"]["plan"], result["search"]["score"]) == (dict(found.plan), found.objective)


def test_inputs_that_stay_in_float_are_noted(folder: Path) -> None:
    class Recurrent(Tiny):
        def model(self) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                return nn.Sequential(nn.RNNCell(INPUTS, 6), nn.Linear(6, CLASSES)).eval()

    globals()["Recurrent"] = Recurrent
    watcher = Watcher()
    run(
        recipe(task=f"{__name__}:Recurrent", method="oneshot", activations={"bits": 4}),
        folder,
        watcher,
    )
    assert (
        "0: its inputs stay in float: RNNCell multiplies what it computes inside, which no hook reaches"
        in watcher.notes
    )
    with pytest.raises(PlanError, match="'fc' matches no layer of Sequential"):
        run(recipe(activations={"bits": {"fc": 4}}), folder.with_name("other"), Watcher())


def test_the_closed_form_neither_trains_nor_has_a_control(folder: Path) -> None:
    watcher, task = Watcher(), Tiny()
    settings: dict[str, Any] = {
        "order": "distance",
        "damp": 0.1,
        "sequential": False,
        "correct": False,
    }
    result = run(
        recipe(method="oneshot", oneshot=settings, fit="max", per="layer"), folder, watcher
    )
    assert set(files(folder.parent)) == {
        f"one/{name}" for name in ("recipe.json", "packed.safetensors", "result.json")
    }
    assert (Tiny.losses, watcher.steps, result["labels_used"]) == (0, [], False)
    assert not {"control_score", "stages"} & set(result)
    assert result["layers"] == [
        {
            "name": error.name,
            "bits": error.bits,
            "nearest": error.nearest,
            "compensated": error.compensated,
        }
        for error in watcher.layers
    ]
    assert [error.name for error in watcher.layers] == ["0", "3"]
    by_hand = calibrate(
        task.model(), {"0": 3, "3": 3}, task.calibration(), fit="max", per="layer", **settings
    )
    by_hand.save(folder / "by_hand")
    assert files(folder)["by_hand"] == files(folder)["packed.safetensors"]
    assert (
        run(recipe(method="oneshot", oneshot=settings, fit="max", per="layer"), folder, Watcher())
        == result
    )


def test_the_recipes_forms_are_exported_into_the_folder(folder: Path) -> None:
    watcher = Watcher()
    result = run(recipe(method="oneshot", export=["lut", "int8", "mx"]), folder, watcher)
    assert {path.name for path in folder.iterdir()} >= {"lut.onnx", "int8.onnx", "mx.safetensors"}
    exports = result["exports"]
    assert [exports[form]["path"] for form in ("lut", "int8", "mx")] == [
        "lut.onnx",
        "int8.onnx",
        "mx.safetensors",
    ]
    assert exports["lut"]["difference"] < 1e-5
    assert "score" not in exports["lut"]
    assert exports["int8"]["packed_score"] == pytest.approx(result["score"])
    assert exports["int8"]["score"] == pytest.approx(result["score"], abs=1)
    assert any(note.startswith(f"exported: {folder / 'lut.onnx'}, ") for note in watcher.notes)
    assert "exports" not in run(recipe(method="oneshot"), folder.parent / "other", Watcher())


def test_what_cannot_be_exported_for_want_of_a_library_is_known_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(forms: tuple[str, ...]) -> None:
        raise ExportError(f"ONNX needs onnx for {forms[0]}")

    monkeypatch.setattr(sys.modules["octavo.runs.run"], "check_forms", refuse)
    with pytest.raises(ExportError, match=r"^ONNX needs onnx for lut$"):
        run(recipe(export=["lut"]), folder, Watcher())
    assert not folder.exists()


def test_retraining_can_start_from_the_closed_form(folder: Path) -> None:
    result = run(recipe(start="oneshot", epochs=0, control=False), folder, Watcher())
    Packed.load(folder / "packed.safetensors").save(folder / "again")
    closed = folder.with_name("closed")
    run(recipe(method="oneshot"), closed, Watcher())
    a, b = (Packed.load(place / "packed.safetensors") for place in (folder, closed))
    assert all(torch.equal(a.layers[name].weight(), b.layers[name].weight()) for name in ("0", "3"))
    assert [layer["name"] for layer in result["layers"]] == ["0", "3"]


def test_stages_can_be_made_up_for_from_the_tasks_calibration_inputs(folder: Path) -> None:
    """Against the same stages made by hand; cut off, it ends the same; without inputs, it is
    another network."""
    settings, task = recipe(start="compensated", warmup=1, control=False), Tiny()
    result = run(settings, folder, Watcher())
    model, teacher = task.model(), task.model().requires_grad_(False)
    torch.manual_seed(zlib.crc32(b"0 -1"))
    retrain(model, task, 1, settings.retraining, teacher=teacher)
    plan = {"0": 3, "3": 3}
    incremental = Incremental(model, plan, portions=(0.5, 0.8, 1.0), inputs=task.calibration())
    for stage, epochs in zip(incremental, (1.5, 1.0, 0.5), strict=True):
        torch.manual_seed(zlib.crc32(f"0 {stage.index}".encode()))
        retrain(model, task, epochs, settings.retraining, teacher=teacher)
    incremental.finish().save("by-hand")
    network = (folder / "packed.safetensors").read_bytes()
    assert network == Path("by-hand").read_bytes()
    assert "layers" not in result  # these are the closed form's, whose weights are not taken
    assert [stage["portion"] for stage in result["stages"]] == [0, 0.5, 0.8, 1]
    run(recipe(start="float", warmup=1, control=False), folder.with_name("float"), Watcher())
    assert network != (folder.with_name("float") / "packed.safetensors").read_bytes()
    for at in (8, 13):  # in the second stage and in the third, of 4, 6, 4 and 2 steps
        place = folder.with_name(f"cut at {at}")
        shared = Tiny.losses
        Tiny.fail_at = shared + at - 4  # the warm-up is shared
        with pytest.raises(Cut):
            run(settings, place, Watcher())
        Tiny.fail_at = None
        torch.manual_seed(99)
        run(settings, place, Watcher())
        assert network == (place / "packed.safetensors").read_bytes()


def test_a_warm_up_in_full_precision_comes_first_and_is_shared(folder: Path) -> None:
    task, settings = Tiny(), recipe().retraining
    result = run(recipe(warmup=2, epochs=0), folder, Watcher())
    warm, teacher = task.model(), task.model().requires_grad_(False)
    torch.manual_seed(zlib.crc32(b"0 -1"))
    retrain(warm, task, 2, settings, teacher=teacher)
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
    run(recipe(warmup=2, epochs=0, bits=2, start="oneshot"), folder.with_name("two"), Watcher())
    assert Tiny.losses == done


def test_without_labels_the_result_says_so_and_the_tasks_loss_is_never_called(folder: Path) -> None:
    result = run(recipe(retraining={}, control=False), folder, Watcher())
    assert result["labels_used"] is False
    assert "control_score" not in result
    assert Tiny.losses == 0
    assert not list(folder.parent.glob("control-*"))


def test_the_control_is_trained_just_as_long_in_the_same_way(folder: Path) -> None:
    """Against a control made by hand: the same seeds, the whole float network, stage by stage."""
    settings, task, watcher = recipe(), Tiny(), Watcher()
    result = run(settings, folder, watcher)
    model, teacher = task.model(), task.model().requires_grad_(False)
    for index, epochs in enumerate((1.5, 1.0, 0.5)):
        torch.manual_seed(zlib.crc32(f"0 {index}".encode()))
        retrain(model, task, epochs, settings.retraining, teacher=teacher)
    assert result["control_score"] == task.score(model) != result["float_score"]
    assert len(watcher.steps) == 2 * (6 + 4 + 2)


@pytest.mark.parametrize(
    "setting",
    [
        {"order": "random"},
        {"order": ["magnitude", "random", "far"]},
        {"fit": "max"},
        {"per": "layer"},
        {"seed": 3, "order": "random"},
    ],
)
def test_every_setting_reaches_the_quantization(setting: dict[str, Any], folder: Path) -> None:
    """Against the same stages made by hand, and against a run without the first setting, which must
    not give the same."""
    settings, task = recipe(bits=2, control=False, **setting), Tiny()
    run(settings, folder, Watcher())
    model, teacher, seed = task.model(), task.model().requires_grad_(False), setting.get("seed", 0)
    names = {key: value for key, value in setting.items() if key != "seed"}
    incremental = Incremental(model, {"0": 2, "3": 2}, portions=(0.5, 0.8, 1.0), seed=seed, **names)
    for stage, epochs in zip(incremental, (1.5, 1.0, 0.5), strict=True):
        torch.manual_seed(zlib.crc32(f"{seed} {stage.index}".encode()))
        retrain(model, task, epochs, settings.retraining, teacher=teacher)
    incremental.finish().save("by-hand")
    network = (folder / "packed.safetensors").read_bytes()
    assert network == Path("by-hand").read_bytes()
    other = recipe(bits=2, control=False, **dict(list(setting.items())[1:]))
    run(other, folder.with_name("other"), Watcher())
    assert network != (folder.with_name("other") / "packed.safetensors").read_bytes()


WHOLE = 2 * (6 + 4 + 2)  # steps of the network and its control


@pytest.mark.parametrize("at", [2, 7, 12, 15, 24])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(at: int, folder: Path) -> None:
    whole = run(recipe(), folder.parent.parent / "other" / "one", Watcher())
    assert Tiny.losses == WHOLE
    Tiny.losses, Tiny.fail_at = 0, at
    with pytest.raises(Cut):
        run(recipe(), folder, Watcher())
    assert not (folder / "result.json").exists()
    torch.manual_seed(99)  # another process has another generator
    Tiny.losses, Tiny.fail_at, watcher = 0, None, Watcher()
    resumed = run(recipe(), folder, watcher)
    done = max(steps for steps in (0, 6, 10, 12, 18, 22) if steps < at)
    assert Tiny.losses == WHOLE - done  # whole stages are not done again
    assert timeless(resumed) == timeless(whole)
    other, one = files(folder.parent.parent / "other"), files(folder.parent)
    assert set(other) == set(one)
    assert other["one/packed.safetensors"] == one["one/packed.safetensors"]


def test_the_time_of_a_resumed_run_counts_what_was_done_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    Tiny.fail_at = 8  # in the second stage
    with pytest.raises(Cut):
        run(recipe(control=False), folder, Watcher())
    earlier = torch.load(folder / "quantized.pt", weights_only=True)["log"][0]["seconds"]
    started = next(clock)
    result = run(recipe(control=False), folder, Watcher())
    assert earlier > 0
    assert result["seconds"] == pytest.approx(earlier + next(clock) - started, abs=25)


def test_a_crash_while_the_checkpoint_is_written_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe(control=False), folder.parent.parent / "other", Watcher())
    save, calls = torch.save, list[int]()

    def crash(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half of it")
            raise Cut
        save(content, file)

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(Cut):
        run(recipe(control=False), folder, Watcher())
    assert set(files(folder)) == {"recipe.json", "quantized.pt"}
    assert len(torch.load(folder / "quantized.pt", weights_only=True)["log"]) == 1
    assert timeless(run(recipe(control=False), folder, Watcher())) == timeless(whole)


def test_a_complete_run_does_nothing_the_second_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(recipe(), folder, Watcher())
    before = files(folder.parent)
    monkeypatch.setattr("octavo._io.os.replace", None)
    watcher = Watcher()
    assert run(recipe(publish="elsewhere"), folder, watcher) == result
    assert watcher.notes == [f"{folder} is complete: nothing to do"]
    assert (files(folder.parent), watcher.steps) == (before, [])


def test_a_complete_run_is_not_passed_off_as_one_with_other_retraining(folder: Path) -> None:
    run(recipe(), folder, Watcher())
    before = files(folder.parent)
    with pytest.raises(
        RecipeError,
        match=r"holds a complete run with Retraining\(learning_rate=0.05.*choose another --folder$",
    ):
        run(recipe(retraining={"learning_rate": 0.01}), folder, Watcher())
    assert files(folder.parent) == before


def other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the task gives a network whose weights are others, with everything else as it
    was."""
    model = Tiny(shift=0.5).model()
    monkeypatch.setattr(Tiny, "model", lambda _: copy.deepcopy(model))


def test_a_complete_run_is_not_passed_off_as_one_of_other_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe(), folder, Watcher())
    before = files(folder.parent)
    other_weights(monkeypatch)
    said = rf"^{folder} holds a complete run, the task's weights have changed since: delete it or choose another --folder$"
    for control in (True, False):
        with pytest.raises(RecipeError, match=said):
            run(recipe(control=control), folder, Watcher())
    assert files(folder.parent) == before


def test_half_a_run_does_not_go_on_with_other_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tiny.fail_at = 8
    with pytest.raises(Cut):
        run(recipe(control=False), folder, Watcher())
    before = files(folder)
    other_weights(monkeypatch)
    with pytest.raises(
        FormatError,
        match=r"quantized.pt: .* \(RecipeError: the task's weights have changed since\); delete it",
    ):
        run(recipe(control=False), folder, Watcher())
    assert files(folder) == before
    (folder / "quantized.pt").unlink()
    fresh = run(recipe(control=False), folder.with_name("fresh"), Watcher())
    assert timeless(run(recipe(control=False), folder, Watcher())) == timeless(fresh)


def test_other_weights_have_another_control(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe(), folder, Watcher())
    other_weights(monkeypatch)
    watcher = Watcher()
    run(recipe(), folder.with_name("two"), watcher)
    assert watcher.stages[3:] == ["control 1/3", "control 2/3", "control 3/3"]
    assert len(list(folder.parent.glob("control-*"))) == 2


def test_a_control_that_was_left_out_can_be_had_later(folder: Path) -> None:
    without = run(recipe(control=False), folder, Watcher())
    network, watcher = files(folder)["packed.safetensors"], Watcher()
    result = run(recipe(), folder, watcher)
    assert watcher.stages == ["control 1/3", "control 2/3", "control 3/3"]
    assert files(folder)["packed.safetensors"] == network
    assert result["control_score"] != result["float_score"]
    assert result["score"] == without["score"]


def test_recipes_that_differ_in_bits_share_their_control_and_others_do_not(folder: Path) -> None:
    results, stages = [], []
    for name, changes in (
        ("a", {}),
        ("b", {"bits": {"0": 2}, "order": "far"}),
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
    changes: dict[str, Any], said: str, folder: Path
) -> None:
    Tiny.fail_at = 8
    with pytest.raises(Cut):
        run(recipe(), folder, Watcher())
    before = files(folder)
    with pytest.raises(
        RecipeError, match=rf"^{folder} holds a run with {said}: choose another --folder$"
    ):
        run(recipe(**changes), folder, Watcher())
    assert files(folder) == before


def test_options_that_json_writes_otherwise_are_still_the_same_recipe(folder: Path) -> None:
    settings = recipe(
        control=False,
        task=f"{__name__}:Dated",
        options={"day": dt.date(2024, 2, 29), "pair": (1, 2)},
    )
    Tiny.fail_at = 8
    with pytest.raises(Cut):
        run(settings, folder, Watcher())
    assert run(settings, folder, Watcher())["recipe"]["options"] == {
        "day": "2024-02-29",
        "pair": [1, 2],
    }


class Dated(Tiny):
    def __init__(self, day: object, pair: object) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"bits": {"conv9": 3}}, PlanError),
        ({"bits": {}}, PlanError),
        ({"task": "nothing"}, RecipeError),
    ],
)
def test_a_recipe_that_does_not_fit_leaves_nothing_and_can_be_mended(
    changes: dict[str, Any], error: type[OctavoError], folder: Path
) -> None:
    with pytest.raises(error):
        run(recipe(**changes), folder, Watcher())
    assert not folder.exists()
    assert run(recipe(control=False), folder, Watcher())["score"]


def test_a_network_without_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "model", lambda _: nn.BatchNorm1d(INPUTS))
    with pytest.raises(
        PlanError,
        match=r"^BatchNorm1d: expected a model with layers that can be quantized, found none$",
    ):
        run(recipe(), folder, Watcher())
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
        run(recipe(), folder, Watcher())
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
    with pytest.raises(
        RecipeError, match=r"^task '.*:Tiny': its model\(\) failed: ZeroDivisionError: two lines$"
    ) as caught:
        run(recipe(), folder, Watcher())
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [OctavoError("no data"), FormatError("damaged"), Cut("stop")])
def test_what_octavo_refuses_in_a_model_passes_unchanged(error: BaseException) -> None:
    class Refuses(Tiny):
        def model(self) -> nn.Module:
            raise error

    with pytest.raises(type(error)) as caught:
        model_of(Refuses(), "refuses")
    assert caught.value is error


def test_a_stage_that_diverged_goes_on_with_a_lower_learning_rate(folder: Path) -> None:
    Tiny.spoil_at = 8  # the second step of the second stage
    with pytest.raises(
        TrainingError,
        match=r"^quantized, stage 2, step 2 of 4: the loss is nan; .*\(stage 1 is kept in .*pt\)$",
    ):
        run(recipe(), folder, Watcher())
    kept = torch.load(folder / "quantized.pt", weights_only=True)["log"]
    Tiny.spoil_at, watcher = None, Watcher()
    result = run(recipe(retraining={"learning_rate": 0.01, "labels": 0.5}), folder, watcher)
    assert watcher.stages[0] == "quantized 2/3"
    assert result["stages"][0] == kept[0]
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
        run(recipe(), folder, Watcher())
    assert set(files(folder)) == {"recipe.json"}
    assert run(recipe(retraining={"learning_rate": 0.01}), folder, Watcher())["score"]


def test_a_control_that_diverged_leaves_the_network_as_it_is(folder: Path) -> None:
    Tiny.spoil_at = 13
    with pytest.raises(TrainingError, match=r"^control, stage 1, step 1 of 6: the loss is nan"):
        run(recipe(), folder, Watcher())
    network, watcher = files(folder)["packed.safetensors"], Watcher()
    run(recipe(), folder, watcher)
    assert watcher.stages == ["control 1/3", "control 2/3", "control 3/3"]
    assert files(folder)["packed.safetensors"] == network


def test_the_teachers_options_are_laid_over_the_tasks(folder: Path) -> None:
    plain = run(recipe(retraining={}, options={"width": 7}, control=False), folder, Watcher())
    Tiny.made.clear()
    other = folder.with_name("other")
    taught = run(
        recipe(retraining={}, options={"width": 7}, teacher={"shift": 3.0}, control=False),
        other,
        Watcher(),
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
        run(recipe(seed=seed, control=False), folder.with_name(name), Watcher())
        networks.append(files(folder.with_name(name))["packed.safetensors"])
    assert networks[0] == networks[1]
    assert len(set(networks)) == 3


def test_the_largest_seed_works(folder: Path) -> None:
    assert run(recipe(seed=(1 << 32) - 1, control=False), folder, Watcher())["score"]


def test_a_score_that_is_a_tensor_becomes_a_number(folder: Path) -> None:
    result = run(recipe(task=f"{__name__}:Rounds"), folder, Watcher())
    assert {type(result[key]) for key in ("float_score", "score", "control_score")} == {float}


def test_publishing_copies_the_result_and_the_network_beside_the_recipe(folder: Path) -> None:
    settings = recipe(publish="results/tiny", control=False)
    run(settings, folder, Watcher())
    assert publish(recipe(), Path("benchmarks/r.yaml"), folder) == []
    stem = Path("benchmarks/results/tiny")
    targets = [Path(f"{stem}.json"), Path(f"{stem}.safetensors")]
    for _ in range(2):  # a second time over the first
        assert publish(settings, Path("benchmarks/r.yaml"), folder) == targets
    assert [path.read_bytes() for path in targets] == [
        (folder / n).read_bytes() for n in ("result.json", "packed.safetensors")
    ]
    assert len(files(Path("benchmarks"))) == 2


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
def test_a_damaged_checkpoint_is_named_in_one_line(which: str, damage: str, folder: Path) -> None:
    Tiny.fail_at = 20  # in the control's second stage
    with pytest.raises(Cut):
        run(recipe(), folder, Watcher())
    path = next(folder.parent.glob(which))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(
        FormatError, match=rf"^{path}: expected the last whole stage.*delete it to start over$"
    ) as caught:
        run(recipe(), folder, Watcher())
    assert "\n" not in str(caught.value)
    assert not Path("owned").exists()
    path.unlink()
    assert run(recipe(), folder, Watcher())["score"]


def test_a_checkpoint_of_another_network_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tiny.fail_at = 8
    with pytest.raises(Cut):
        run(recipe(), folder, Watcher())
    saved = torch.load(folder / "quantized.pt", weights_only=True)
    wide = Tiny(width=9).model()
    torch.save(saved | {"digest": digest_of(wide)}, folder / "quantized.pt")
    monkeypatch.setattr(Tiny, "model", lambda _: copy.deepcopy(wide))
    with pytest.raises(FormatError, match=r"quantized.pt: .* of another network .*size mismatch"):
        run(recipe(), folder, Watcher())


@pytest.mark.parametrize("text", ["", '{"task"', "[1]", "\x00"])
@pytest.mark.parametrize("which", ["one/recipe.json", "one/result.json", "control-*/result.json"])
def test_damaged_json_is_named_in_one_line(which: str, text: str, folder: Path) -> None:
    run(recipe(), folder, Watcher())
    path = next(folder.parent.glob(which))
    path.write_text(text)
    if which.startswith("control"):
        (folder / "result.json").unlink()
    with pytest.raises(FormatError, match=rf"^{path}: damaged, ") as caught:
        run(recipe(), folder, Watcher())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", '{"score": "high"}'])
def test_a_control_without_a_score_is_damaged(text: str, folder: Path) -> None:
    run(recipe(), folder, Watcher())
    (path,) = folder.parent.glob("control-*/result.json")
    path.write_text(text)
    (folder / "result.json").unlink()
    with pytest.raises(
        FormatError, match=rf"^{path}: damaged, expected a number called score, got "
    ):
        run(recipe(), folder, Watcher())


# Runs that search for their bits.


def searching(by: str = "random", budget: float = 3, **changes: Any) -> Recipe:
    wanted = {"budget": {"average_bits": budget}, "method": by, "trials": 12}
    return recipe(**{"bits": None, "search": wanted, "control": False} | changes)


@pytest.mark.parametrize("method", ["dnq", "random"])
def test_a_run_searches_for_its_bits(method: str, folder: Path) -> None:
    watcher, task = Watcher(), Tiny()
    result = run(searching(method, seed=3), folder, watcher)
    names = (
        "packed.safetensors",
        "plan.yaml",
        "quantized.pt",
        "recipe.json",
        "result.json",
        "search.jsonl",
    )
    assert set(files(folder.parent)) == {f"one/{name}" for name in names}
    plan = Plan.load(folder / "plan.yaml")
    assert plan == Packed.load(folder / "packed.safetensors").plan
    assert plan.cost().average_bits == pytest.approx(result["nominal_bits"])
    assert Budget(average_bits=3).allows(plan.cost())
    assert watcher.searches == [12]
    assert watcher.notes[1].startswith("search: ")
    settings: dict[str, Any] = {
        "budget": Budget(average_bits=3),
        "method": method,
        "trials": 12,
        "seed": 3,
    }
    found = search(task.model(), task.calibration(), **settings)
    assert tuple(watcher.trials) == found.trials
    assert plan == found.plan
    assert result["search"] == {
        "plan": dict(plan),
        "score": found.objective,
        "uniform": {"0": 3, "3": 3},
        "uniform_score": found.uniform_objective,
    }
    assert result["search"]["score"] >= result["search"]["uniform_score"]
    assert json.loads((folder / "result.json").read_text()) == result
    again = Watcher()
    assert run(searching(method, seed=3), folder, again) == result
    assert (again.searches, again.trials) == ([], [])


def test_the_network_that_is_searched_is_the_one_that_is_quantized_after_its_warm_up(
    folder: Path,
) -> None:
    result = run(searching("random", seed=3, warmup=2), folder, Watcher())
    (warmed,) = folder.parent.glob("warmup-*/warmup.pt")
    model, task = Tiny().model(), Tiny()
    model.load_state_dict(torch.load(warmed, weights_only=True)["state"])
    found = search(
        model, task.calibration(), budget=Budget(average_bits=3), method="random", trials=12, seed=3
    )
    assert (result["search"]["score"], result["search"]["uniform_score"]) == (
        found.objective,
        found.uniform_objective,
    )
    assert Packed.load(folder / "packed.safetensors").plan == found.plan


@pytest.mark.parametrize(
    "wrong", [{"budget": {"average_bits": 1}}, {"budget": {"average_bits": 3}, "pins": {"nope": 3}}]
)
def test_a_search_that_does_not_fit_is_refused_before_the_warm_up(
    wrong: dict[str, Any], folder: Path
) -> None:
    Tiny.losses = 0
    with pytest.raises((BudgetError, PlanError)):
        run(searching(search=wrong, warmup=2), folder, Watcher())
    assert Tiny.losses == 0
    assert files(folder.parent) == {}


@pytest.mark.parametrize("method", ["oneshot", "inq"])
def test_a_search_for_the_bits_of_inputs_too(method: str, folder: Path) -> None:
    macs = {"0": INPUTS * 6, "3": 6 * CLASSES}
    wanted = {
        "budget": {"bit_ops": 16 * sum(macs.values())},
        "method": "exact",
        "trials": 20,
        "activations": [4, 8],
    }
    settings, task = searching(search=wanted, method=method, control=False), Tiny()
    result = run(settings, folder, Watcher())
    found = search(
        task.model(),
        task.calibration(),
        budget=settings.search.budget,
        method="exact",
        trials=20,
        activations=(4, 8),
    )  # type: ignore[union-attr]
    packed = Packed.load(folder / "packed.safetensors")
    assert packed.plan == found.plan == Plan.load(folder / "plan.yaml")
    assert (
        result["activation_bits"]
        == found.plan.activations
        == {n: form.bits for n, form in packed.activations.items()}
    )
    assert sum(found.plan[n].bits * found.plan.activations[n] * macs[n] for n in macs) <= 16 * sum(
        macs.values()
    )
    fresh = task.model()
    packed.apply(fresh)
    assert result["score"] == task.score(fresh)


def test_every_setting_reaches_the_search(folder: Path) -> None:
    wanted = {
        "budget": {"ratio": 7},
        "method": "random",
        "trials": 5,
        "options": [2, 3, 6],
        "pins": {"3": 6},
    }
    result = run(searching(search=wanted, seed=3, method="oneshot"), folder, Watcher())
    assert result["search"]["plan"]["3"] == 6
    assert result["search"]["plan"]["0"] in (2, 3)
    head, *lines = map(json.loads, (folder / "search.jsonl").read_text().splitlines())
    assert head["settings"]["options"] == [[2, 3, 6], [6]]
    assert all(line["bits"][1] == 6 for line in lines)
    assert [layer["bits"] for layer in result["layers"]] == list(result["search"]["plan"].values())
    few = {"budget": {"average_bits": 3}, "trials": 9}
    with pytest.raises(PlanError, match=r"^trials: expected at least 10, .* got 9$"):
        run(searching(search=few), folder.with_name("few"), Watcher())


def test_a_run_with_a_search_that_was_cut_off_in_retraining_ends_as_if_it_had_not_been(
    folder: Path,
) -> None:
    whole = run(searching(), folder.with_name("whole"), Watcher())
    Tiny.losses, Tiny.fail_at = 0, 8
    with pytest.raises(Cut):
        run(searching(), folder, Watcher())
    Tiny.fail_at, before = None, files(folder)
    torch.manual_seed(99)
    assert timeless(run(searching(), folder, Watcher())) == timeless(whole)
    assert (
        files(folder)["packed.safetensors"]
        == files(folder.with_name("whole"))["packed.safetensors"]
    )
    assert files(folder)["search.jsonl"] == before["search.jsonl"]  # nothing was scored again


def test_a_run_that_was_cut_off_in_its_search_goes_on_from_the_journal(folder: Path) -> None:
    class Cutting(Watcher):
        def trial(self, trial: Trial) -> None:
            super().trial(trial)
            raise Cut

    whole = run(searching("exact"), folder.with_name("whole"), Watcher())
    with pytest.raises(Cut):
        run(searching("exact"), folder, Cutting())
    assert set(files(folder)) == {"search.jsonl"}
    begun = (folder / "search.jsonl").read_text()
    assert (
        len(begun.splitlines()) == 11
    )  # the settings, full precision, each layer alone at four options, a plan
    assert timeless(run(searching("exact"), folder, Watcher())) == timeless(whole)
    assert (folder / "search.jsonl").read_text().startswith(begun)
    for name in ("search.jsonl", "plan.yaml", "packed.safetensors"):
        assert files(folder)[name] == files(folder.with_name("whole"))[name]


def test_a_budget_that_cannot_be_met_leaves_nothing_and_can_be_mended(folder: Path) -> None:
    with pytest.raises(BudgetError):
        run(searching(budget=1.5), folder, Watcher())
    assert not folder.exists()
    assert run(searching(), folder, Watcher())["score"]


def test_another_search_is_another_run(folder: Path) -> None:
    run(searching(), folder, Watcher())
    before = files(folder)
    for other in (searching("exact"), searching(budget=2.5), recipe(control=False)):
        with pytest.raises(
            RecipeError,
            match=rf"^{folder} holds a run with (search|bits) .*: choose another --folder$",
        ):
            run(other, folder, Watcher())
    assert files(folder) == before


def test_a_search_shares_the_control_of_given_bits(folder: Path) -> None:
    given, watcher = run(recipe(), folder, Watcher()), Watcher()
    found = run(searching(control=True), folder.with_name("two"), watcher)
    assert found["control_score"] == given["control_score"]
    assert watcher.stages == ["quantized 1/3", "quantized 2/3", "quantized 3/3"]


PRUNE = {"sparsity": 0.5, "epochs": 2, "learning_rate": 0.1}


def test_surgery_comes_before_the_stages_and_its_zeros_stay(folder: Path) -> None:
    """Against surgery and stages made by hand."""
    settings, task = recipe(warmup=1, prune=PRUNE, start="oneshot", bits=4, control=False), Tiny()
    result = run(settings, folder, Watcher())
    model, teacher = task.model(), task.model().requires_grad_(False)
    torch.manual_seed(zlib.crc32(b"0 -1"))
    retrain(model, task, 1, settings.retraining, teacher=teacher)
    surgery = Surgery(model, 0.5, steps=8)
    torch.manual_seed(zlib.crc32(b"0 -2"))
    faster = replace(settings.retraining, learning_rate=0.1)
    retrain(model, task, 2, faster, teacher=teacher, observe=lambda _: surgery.step())
    masks = surgery.finish()
    assert sum(int((~mask).sum()) for mask in masks.values()) == 24  # of 48
    calibrate(model, {"0": 4, "3": 4}, task.calibration()).apply(model)
    incremental = Incremental(model, {"0": 4, "3": 4}, portions=(0.5, 0.8, 1.0), masks=masks)
    for stage, epochs in zip(incremental, (1.5, 1.0, 0.5), strict=True):
        torch.manual_seed(zlib.crc32(f"0 {stage.index}".encode()))
        retrain(model, task, epochs, settings.retraining, teacher=teacher)
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


def test_a_run_that_was_cut_off_while_pruning_ends_the_same(folder: Path) -> None:
    settings = recipe(prune=PRUNE, control=False)
    run(settings, folder, Watcher())
    for at in (5, 10):  # in the surgery, of 8 steps, and in the first stage
        place, Tiny.fail_at = folder.with_name(f"cut at {at}"), Tiny.losses + at
        with pytest.raises(Cut):
            run(settings, place, Watcher())
        Tiny.fail_at = None
        torch.manual_seed(99)
        run(settings, place, Watcher())
        assert (place / "packed.safetensors").read_bytes() == (
            folder / "packed.safetensors"
        ).read_bytes()


def test_the_control_of_a_pruned_network_is_whole_and_trained_as_long(folder: Path) -> None:
    settings, task, watcher = recipe(prune=PRUNE), Tiny(), Watcher()
    result = run(settings, folder, watcher)
    model, teacher = task.model(), task.model().requires_grad_(False)
    torch.manual_seed(zlib.crc32(b"0 -2"))
    retrain(model, task, 2, replace(settings.retraining, learning_rate=0.1), teacher=teacher)
    for index, epochs in enumerate((1.5, 1.0, 0.5)):
        torch.manual_seed(zlib.crc32(f"0 {index}".encode()))
        retrain(model, task, epochs, settings.retraining, teacher=teacher)
    assert result["control_score"] == task.score(model)
    assert len(watcher.steps) == 2 * (8 + 6 + 4 + 2)


def test_a_task_whose_network_is_sparse_keeps_its_zeros_through_the_closed_form(
    folder: Path,
) -> None:
    for start in ("oneshot", "compensated", "float"):
        run(
            recipe(task=f"{__name__}:Sparse", start=start, control=False),
            folder.with_name(start),
            Watcher(),
        )
        packed, zeros = (
            Packed.load(folder.with_name(start) / "packed.safetensors"),
            Sparse().model()[0].weight == 0,
        )  # type: ignore[index]
        assert bool((packed.layers["0"].weight()[zeros] == 0).all())


def test_other_tensors_can_be_stored_in_float16(folder: Path) -> None:
    result = run(recipe(floats="float16", control=False), folder, Watcher())
    rest = 6 + 4 * 6 + CLASSES
    assert result["other_bytes"] == 2 * rest + 8
    assert result["float_bytes"] == 4 * (48 + rest) + 8
    assert result["ratio"] == pytest.approx(result["float_bytes"] / result["file_bytes"])
    model = Tiny().model()
    Packed.load(folder / "packed.safetensors").apply(model)
    assert result["score"] == Tiny().score(model)


class Normed(Tiny):
    """With a norm that does something."""

    def model(self) -> nn.Module:
        model = super().model()
        model[1].running_mean += 0.5  # type: ignore[index]
        return model


def test_norms_can_be_folded(folder: Path) -> None:
    """The score is that of the folded file, whose statistics are gone; the closed form folds
    too."""
    for method in ("inq", "oneshot"):
        place = folder.with_name(method)
        result = run(
            recipe(task=f"{__name__}:Normed", floats="folded", method=method, control=False),
            place,
            Watcher(),
        )
        model = Normed().model()
        Packed.load(place / "packed.safetensors").apply(model)
        assert result["score"] == Normed().score(model)
        assert not model.state_dict()["1.running_mean"].any()
        assert result["float_bytes"] == 4 * (48 + 6 + 4 * 6 + CLASSES) + 8
        assert result["other_bytes"] == 2 * (6 + 2 * 6 + CLASSES) + 2 * 6 + 8
