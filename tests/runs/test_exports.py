"""The exports of a run: written beside the packed network, checked and scored."""

from pathlib import Path

import pytest
from tests.runs.tiny import Watcher, recipe

from octavo.runs.run import run


def test_the_recipes_forms_are_exported_into_the_folder(folder: Path) -> None:
    watcher = Watcher()
    result = run(recipe(method="ptq", export=["lut", "int8", "mx"]), folder, watcher)
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
    assert "exports" not in run(recipe(method="ptq"), folder.parent / "other")


def test_an_export_can_be_added_to_a_complete_run(folder: Path) -> None:
    """Nothing is trained for it, and nothing else changes."""
    whole = run(recipe(control=False), folder)
    packed = (folder / "packed.safetensors").read_bytes()
    watcher = Watcher()
    result = run(recipe(control=False, export=["mx"]), folder, watcher)
    assert watcher.steps == []
    assert result["score"] == whole["score"]
    assert (folder / result["exports"]["mx"]["path"]).is_file()
    assert (folder / "packed.safetensors").read_bytes() == packed
    assert run(recipe(control=False, export=["mx"]), folder) == result
