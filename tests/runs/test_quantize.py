"""The steps that quantize: inputs, PTQ and INQ, against the same by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import (
    Cut,
    Tiny,
    Watcher,
    files,
    recipe,
    stages_by_hand,
    warm_up_by_hand,
)

from octavo.activations.quantization import quantize_activations
from octavo.dnq.searching import search
from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Budget
from octavo.ptq.calibration import calibrate
from octavo.runs.run import run
from octavo.storage.packed import Packed

pytestmark = pytest.mark.usefixtures("folder")


def test_ptq_neither_trains_nor_has_a_control(folder: Path) -> None:
    watcher, task = Watcher(), Tiny()
    settings: dict[str, Any] = {
        "order": "distance",
        "damp": 0.1,
        "sequential": False,
    }
    result = run(recipe(method="ptq", ptq=settings, fit="max", per="tensor"), folder, watcher)
    assert set(files(folder.parent)) == {
        f"one/{name}"
        for name in ("details.json", "recipe.json", "packed.safetensors", "result.json")
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
        task.model(), {"0": 3, "3": 3}, task.calibration(), fit="max", per="tensor", **settings
    )
    of_by_hand = by_hand.held_out
    assert of_by_hand is not None
    assert result["held_out"] == (
        None
        if not of_by_hand.samples
        else {key: getattr(of_by_hand, key) for key in ("samples", "divergence", "nearest", "lost")}
    )
    by_hand.save(folder / "by_hand")
    assert files(folder)["by_hand"] == files(folder)["packed.safetensors"]
    assert run(recipe(method="ptq", ptq=settings, fit="max", per="tensor"), folder) == result


def test_retraining_can_start_from_ptq(folder: Path) -> None:
    result = run(recipe(start="ptq", epochs=0, control=False), folder)
    Packed.load(folder / "packed.safetensors").save(folder / "again")
    closed = folder.with_name("closed")
    run(recipe(method="ptq"), closed)
    a, b = (Packed.load(place / "packed.safetensors") for place in (folder, closed))
    assert all(torch.equal(a.layers[name].weight(), b.layers[name].weight()) for name in ("0", "3"))
    assert [layer["name"] for layer in result["layers"]] == ["0", "3"]


def test_free_weights_can_be_refitted_from_the_tasks_calibration_inputs(folder: Path) -> None:
    """Against the same stages made by hand; cut off, it ends the same; without inputs, it is
    another network."""
    settings = recipe(start="refit", warmup=1, control=False)
    task = Tiny()
    result = run(settings, folder)
    model = task.model()
    warm_up_by_hand(model, 1, settings)
    plan = {"0": 3, "3": 3}
    incremental = Incremental(model, plan, portions=(0.5, 0.8, 1.0), inputs=task.calibration())
    stages_by_hand(incremental, model, settings)
    incremental.finish().save("by-hand")
    network = (folder / "packed.safetensors").read_bytes()
    assert network == Path("by-hand").read_bytes()
    assert "layers" not in result  # these are the closed form's, whose weights are not taken
    assert [stage["portion"] for stage in result["stages"]] == [0, 0.5, 0.8, 1]
    run(recipe(start="float", warmup=1, control=False), folder.with_name("float"))
    assert network != (folder.with_name("float") / "packed.safetensors").read_bytes()
    for at in (8, 13):  # in the second stage and in the third, of 4, 6, 4 and 2 steps
        place = folder.with_name(f"cut at {at}")
        shared = Tiny.losses
        Tiny.fail_at = shared + at - 4  # the warm-up is shared
        with pytest.raises(Cut):
            run(settings, place)
        Tiny.fail_at = None
        torch.manual_seed(99)
        run(settings, place)
        assert network == (place / "packed.safetensors").read_bytes()


@pytest.mark.parametrize(
    "setting",
    [
        {"order": "random"},
        {"order": ["magnitude", "random", "relative"]},
        {"fit": "max"},
        {"per": "tensor"},
        {"seed": 3, "order": "random"},
        {"rate": 4.0, "floats": "float32"},
    ],
)
def test_every_setting_reaches_the_quantization(setting: dict[str, Any], folder: Path) -> None:
    """Against the same stages made by hand, and against a run without the first setting, which must
    not give the same."""
    settings = recipe(bits=2, control=False, **setting)
    task = Tiny()
    run(settings, folder)
    model = task.model()
    names = {key: value for key, value in setting.items() if key not in ("seed", "floats")}
    incremental = Incremental(
        model, {"0": 2, "3": 2}, portions=(0.5, 0.8, 1.0), seed=settings.seed, **names
    )
    stages_by_hand(incremental, model, settings)
    incremental.finish().save("by-hand")
    network = (folder / "packed.safetensors").read_bytes()
    assert network == Path("by-hand").read_bytes()
    other = recipe(bits=2, control=False, **dict(list(setting.items())[1:]))
    run(other, folder.with_name("other"))
    assert network != (folder.with_name("other") / "packed.safetensors").read_bytes()


def test_quantized_inputs_train_through_the_warm_up_and_every_stage(folder: Path) -> None:
    """Against the same by hand; cut off, it ends the same; teacher and control stay float."""
    settings = recipe(warmup=1, activations={"bits": {"0": 8, "3": 4}})
    task = Tiny()
    watcher = Watcher()
    result = run(settings, folder, watcher)
    model = task.model()
    quantize_activations(model, task.calibration(), {"0": 8, "3": 4})
    warm_up_by_hand(model, 1, settings)
    incremental = Incremental(model, {"0": 3, "3": 3}, portions=(0.5, 0.8, 1.0))
    stages_by_hand(incremental, model, settings)
    incremental.finish().save("by-hand")
    network = (folder / "packed.safetensors").read_bytes()
    assert network == Path("by-hand").read_bytes()
    assert result["activation_bits"] == {"0": 8, "3": 4}
    assert result["score"] == task.score(model)
    assert "the inputs of 2 layers are quantized to 4 to 8 bits" in watcher.notes
    plain = run(recipe(warmup=1), folder.with_name("plain"))
    assert result["control_score"] == plain["control_score"]
    assert "activation_bits" not in plain
    assert len(list(folder.parent.glob("warmup-*"))) == 2  # quantized inputs have one of their own
    for at in (2, 8):  # in the warm-up of 4 steps, and in the first stage
        Tiny.losses, Tiny.fail_at = 0, at
        again = folder.parent.parent / f"cut-{at}" / "one"
        with pytest.raises(Cut):
            run(settings, again)
        Tiny.fail_at = None
        run(settings, again)
        assert (again / "packed.safetensors").read_bytes() == network


def test_ptq_and_a_search_see_quantized_inputs(folder: Path) -> None:
    task, model = Tiny(), Tiny().model()
    quantize_activations(model, task.calibration(), 4, power_of_two=True)
    activations = {"bits": 4, "power_of_two": True, "learned": False}
    run(recipe(method="ptq", activations=activations), folder)
    calibrate(model, {"0": 3, "3": 3}, task.calibration()).save("by-hand")
    assert (folder / "packed.safetensors").read_bytes() == Path("by-hand").read_bytes()
    wanted = {"budget": {"average_bits": 3}, "trials": 20, "method": "random"}
    other = folder.with_name("searched")
    result = run(recipe(method="ptq", activations=activations, bits=None, search=wanted), other)
    found = search(
        model, task.calibration(), budget=Budget(average_bits=3), trials=20, method="random"
    )
    assert (result["search"]["plan"], result["search"]["score"]) == (
        dict(found.plan),
        found.objective,
    )


def test_inputs_that_stay_in_float_are_noted(folder: Path) -> None:
    watcher = Watcher()
    run(
        recipe(task="tests.runs.tiny:Recurrent", method="ptq", activations={"bits": 4}),
        folder,
        watcher,
    )
    assert (
        "0: its inputs stay in float: RNNCell multiplies what it computes inside, "
        "which no hook reaches" in watcher.notes
    )
    with pytest.raises(PlanError, match="'fc' matches no layer of Sequential"):
        run(recipe(activations={"bits": {"fc": 4}}), folder.with_name("other"))
