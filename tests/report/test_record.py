"""The record of a run: all that its folder says, whoever wrote it, and when."""

import json
import shutil
from pathlib import Path

import pytest

from octavo.errors import FormatError
from octavo.report.record import RunRecord, load_runs


def test_the_layers_have_their_figures_from_every_file(searched: RunRecord) -> None:
    first, last = searched.layers
    assert (first.name, first.kind, first.shape, first.weights) == ("0", "linear", (6, 5), 30)
    assert first.bits == searched.result["search"]["plan"]["0"]
    assert first.stored_bytes is not None
    assert first.stored_bytes > 0
    assert first.nearest == searched.result["layers"][0]["nearest"]
    assert first.compensated == searched.result["layers"][0]["compensated"]
    assert last.loss_alone == pytest.approx(searched.losses_alone["3"][str(last.bits)])


def test_the_losses_of_single_layers_come_from_the_journal(
    searched_run: Path, searched: RunRecord
) -> None:
    lines = [json.loads(line) for line in (searched_run / "search.jsonl").read_text().splitlines()]
    scores = {tuple(line["bits"]): line["score"] for line in lines[1:]}
    assert set(searched.losses_alone["0"]) == {"2", "3", "4", "5", "6"}
    assert searched.losses_alone["0"]["2"] == scores[None, None] - scores[2, None]


def test_a_layer_that_stays_in_float_has_no_bits(plain: RunRecord) -> None:
    assert [row.bits for row in plain.layers] == [3, None]
    assert plain.control is None


def test_a_folder_of_an_older_version_tells_what_it_can(
    searched_run: Path, searched: RunRecord, tmp_path: Path
) -> None:
    old = shutil.copytree(searched_run, tmp_path / "old")
    for name in ("details.json", "search.json", "search.jsonl"):
        (old / name).unlink()
    record = RunRecord.load(old)
    assert [row.name for row in record.layers] == ["0", "3"]
    assert [row.bits for row in record.layers] == [row.bits for row in searched.layers]
    assert [row.stored_bytes for row in record.layers] == [
        row.stored_bytes for row in searched.layers
    ]
    assert (record.details, record.course) == ({}, {})
    assert [stage["portion"] for stage in record.stages] == [0.5, 0.8, 1.0]


def test_a_published_result_is_a_record_too(searched_run: Path, tmp_path: Path) -> None:
    shutil.copy(searched_run / "result.json", tmp_path / "best.json")
    shutil.copy(searched_run / "packed.safetensors", tmp_path / "best.safetensors")
    record = RunRecord.load(tmp_path / "best.json")
    assert record.name == "best"
    assert [row.name for row in record.layers] == ["0", "3"]


@pytest.mark.parametrize("name", ["dnq-3.0", "inq-3bit", "order-far", "sparse-4bit", "w4a4"])
def test_the_committed_results_can_be_read(name: str) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / f"resnet20-{name}.json"
    record = RunRecord.load(path)
    assert 80 < record.result["score"] < 93
    assert record.method


def test_what_was_done_is_said_in_words(searched: RunRecord, plain: RunRecord) -> None:
    assert searched.method.endswith("bits on average by search, INQ")
    assert plain.method.endswith("bits on average, calibrated")


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"result\.json: no such file; expected the folder of a"):
        RunRecord.load(tmp_path)
    (tmp_path / "other.json").write_text('{"recipe": {}}')
    with pytest.raises(FormatError, match=r"expected the result of a run, it lacks float_score, "):
        RunRecord.load(tmp_path / "other.json")


def test_runs_of_one_name_are_told_apart(searched_run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "one" / "r", tmp_path / "two" / "r", tmp_path / "two" / "s.json"]
    for path in paths[:2]:
        path.mkdir(parents=True)
        shutil.copy(searched_run / "result.json", path)
    shutil.copy(searched_run / "result.json", paths[2])
    assert [run.name for run in load_runs(paths)] == ["one/r", "two/r", "two/s"]
    assert [run.name for run in load_runs(paths[1:])] == ["r", "s"]
    assert [run.name for run in load_runs([paths[0], paths[0]])] == ["r", "r"]
