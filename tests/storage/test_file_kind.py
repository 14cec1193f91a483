"""Files are told apart by their first bytes, whatever they are called."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from octavo.storage.file_kind import kind_of, kind_of_file


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (save({"a": torch.zeros(2)}), "safetensors"),
        (b"\x08\x0a\x12\x07pytorch", "onnx"),
        (b"bits:   {conv1: 3}", "other"),  # a text with a brace where a header has its own
        (b"", "other"),
        (b"\x00" * 8, "other"),
    ],
)
def test_the_kind_of_a_file(data: bytes, kind: str, tmp_path: Path) -> None:
    assert kind_of(data) == kind
    file = tmp_path / "a b"
    file.write_bytes(data)
    assert kind_of_file(file) == kind


def test_where_there_is_no_file_there_is_no_kind(tmp_path: Path) -> None:
    assert kind_of_file(tmp_path) is None
    assert kind_of_file(tmp_path / "none") is None
