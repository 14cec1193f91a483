"""Loading from Hugging Face: errors that say what to do."""

import sys
from pathlib import Path

import pytest

from octavo.errors import RecipeError
from octavo.runs.tasks.pretrained import load_network, load_tokenizer, read_text


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RecipeError, match=r"install octavo with its extra hf$"):
        load_network("AutoModel", "hf:gpt2")


def test_a_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^network: loading '.*' failed: ") as raised:
        load_network("AutoModelForCausalLM", str(tmp_path))
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError, match=r"^tokenizer: expected a folder or hf:NAME"):
        load_tokenizer(str(tmp_path / "none"))


def test_a_text_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"^val: expected a text file in UTF-8"):
        read_text(str(tmp_path / "text.txt"), "val")
