"""The details of a run: every byte and every weight is counted, before and after."""

import json
from pathlib import Path

import pytest
import torch
from tests.runs.tiny import CLASSES, INPUTS, Tiny, recipe
from torch import nn

from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.runs.details import network_details, stored_bytes, without_curves
from octavo.runs.run import run
from octavo.runs.run_folder import write_json
from octavo.storage.packed import Packed


def packed_net(**settings: object) -> tuple[nn.Module, Packed]:
    model = Tiny().model()
    plan = Plan({"0": 2, "3": 5})
    return model, calibrate(model, plan, Tiny().calibration(), **settings)  # type: ignore[arg-type]


def test_every_weight_is_in_both_histograms_of_its_layer() -> None:
    model, packed = packed_net()
    first, last = network_details(model, packed, absorbed=False)["layers"]
    assert (first["name"], first["bits"], last["name"], last["bits"]) == ("0", 2, "3", 5)
    assert first["shape"] == [6, INPUTS]
    for row, weights in ((first, 6 * INPUTS), (last, 6 * CLASSES)):
        assert sum(row["before"]["counts"]) == sum(row["after"]["counts"]) == weights
    assert first["after"]["levels"] == [-1, 0, 1]
    assert first["zeros"] == pytest.approx(first["after"]["counts"][1] / (6 * INPUTS), abs=1e-6)


def test_the_weights_before_are_in_units_of_their_scale() -> None:
    """A weight that is a level falls into the bin of that level."""
    model, packed = packed_net()
    packed.apply(model)
    row = network_details(model, packed, absorbed=False)["layers"][0]
    low, high, counts = (row["before"][key] for key in ("low", "high", "counts"))
    width = (high - low) / len(counts)
    for level, count in zip(row["after"]["levels"], row["after"]["counts"], strict=True):
        assert counts[int((level + 1e-9 - low) / width)] == count


def test_a_scale_that_the_norm_cancels_does_not_count() -> None:
    model, packed = packed_net()
    packed.apply(model)
    with torch.no_grad():
        model[0].weight.mul_(torch.arange(1, 7)[:, None])  # type: ignore[index]
    plain = network_details(Tiny().model(), packed, absorbed=False)
    scaled = network_details(model, packed, absorbed=True)
    assert scaled["layers"][0]["before"]["counts"][10:50].count(0) > 30
    assert plain["layers"][0]["after"] == scaled["layers"][0]["after"]


def test_what_stays_in_float_has_its_reason() -> None:
    model, packed = packed_net()
    skipped = network_details(model, packed, absorbed=False)["skipped"]
    assert {row["name"] for row in skipped} == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert all(row["reason"] and row["weights"] for row in skipped)


def test_the_bytes_of_layers_add_up_to_the_streams_of_the_file() -> None:
    _, packed = packed_net()
    stored = stored_bytes(packed)
    assert list(stored) == ["0", "3"]
    weights = 6 * INPUTS + 6 * CLASSES
    assert 0 < sum(stored.values()) <= packed.stored_bits * weights / 8


def test_the_bytes_of_layers_are_those_of_the_coding() -> None:
    """Of a large layer, what is coded around it hardly counts."""
    pytest.importorskip("constriction")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 100))
    packed = calibrate(model, Plan.uniform(model, 4), [torch.randn(64, 200)], coding="small")
    weights = sum(packed.plan.weights.values())
    assert sum(stored_bytes(packed).values()) * 8 / weights == pytest.approx(
        packed.stored_bits, rel=0.002
    )


def test_a_run_writes_its_curves_there_and_not_into_its_result(folder: Path) -> None:
    result = run(recipe(), folder)
    details = json.loads((folder / "details.json").read_text())
    stages = details["stages"]
    assert [stage["portion"] for stage in stages["quantized"]] == [0.5, 0.8, 1.0]
    assert [len(stage["curve"]) for stage in stages["quantized"]] == [6, 4, 2]
    assert [len(stage["curve"]) for stage in stages["control"]] == [6, 4, 2]
    last = stages["quantized"][-1]
    assert last["score"] == pytest.approx(result["score"], abs=1e-3)  # fully frozen
    losses = [loss for _, loss in stages["quantized"][0]["curve"]]
    assert sum(losses) / 6 == pytest.approx(result["stages"][0]["loss"], abs=1e-4)
    assert result["stages"] == without_curves(stages["quantized"])
    assert {"scores and files", "retraining, quantized", "retraining, control"} == set(
        details["seconds"]
    )


def test_a_resumed_run_keeps_the_curves_of_its_earlier_stages(half_run, folder: Path) -> None:
    half_run(8)
    run(recipe(), folder)
    resumed = json.loads((folder / "details.json").read_text())
    run(recipe(), folder.parent / "two")
    whole = json.loads((folder.parent / "two" / "details.json").read_text())
    curves = [
        [stage["curve"] for stage in each["stages"]["quantized"]] for each in (resumed, whole)
    ]
    assert curves[0] == curves[1]


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")}, compact=True)
    assert not (tmp_path / "a.json").exists()
