"""The registry of forms: octavo's own, a user's, and names that nobody registered."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from octavo.deploy import forms
from octavo.deploy.comparison import Comparison
from octavo.deploy.exporting import Form, export, export_checked
from octavo.deploy.forms import FORMS, FormFile, Job, check_forms, file_name, maker, register_form
from octavo.errors import ExportError
from octavo.storage.packed import Packed, pack


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Packed:
    """A network without layers; forms that a test registers go again after it."""
    monkeypatch.setattr(forms, "_makers", forms._makers.copy())
    return pack(nn.Identity(), {})


def test_octavos_own_forms() -> None:
    assert (
        list(FORMS) == ["lut", "fp8", "int8", "float", "mx", "hf", "gguf"] == list(get_args(Form))
    )
    assert {maker(name).__module__ for name in FORMS} == {
        f"octavo.deploy.{file}" for file in ("lut", "fp8", "int8", "float32", "mx", "hf", "gguf")
    }


def test_a_form_may_be_a_folder(packed: Packed, tmp_path: Path) -> None:
    files = {"weights": b"12", "config.json": b"345"}
    register_form("folder", lambda _: FormFile(files, wider=("conv1",)))
    exported = export_checked(nn.Identity(), packed, tmp_path / "x", form="folder")
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()} == files
    assert (exported.path, exported.bytes, exported.wider) == (tmp_path / "x", 5, ("conv1",))


def test_names_in_the_folder_of_a_run() -> None:
    names = [file_name(form) for form in ("lut", "mx", "hf", "gguf")]
    assert names == ["lut.onnx", "mx.safetensors", "hf", "gguf.gguf"]


def test_a_form_of_a_user_is_exported_like_any_other(packed: Packed, tmp_path: Path) -> None:
    jobs: list[Job] = []

    def make(job: Job) -> FormFile:
        jobs.append(job)
        return FormFile(b"text", Comparison(0.5, 0.25, 0.75), ("conv1",))

    register_form("text", make)
    batch = torch.ones(1)
    exported = export_checked(nn.Identity(), packed, tmp_path / "x", form="text", example=batch)
    assert exported.path.read_bytes() == b"text"
    assert (exported.form, exported.bytes, exported.inexact) == ("text", 4, ("conv1",))
    assert (exported.difference, exported.agreement) == (0.5, 0.75)
    assert jobs[0].packed is packed
    assert not jobs[0].model.training
    assert jobs[0].batches == [batch]


def test_a_form_may_be_registered_by_its_place(packed: Packed, tmp_path: Path) -> None:
    register_form("later", "octavo.deploy.mx:make")
    path = export(nn.Identity(), packed, tmp_path / "x", form="later", example=torch.ones(1))
    mx = export(nn.Identity(), packed, tmp_path / "mx", form="mx", example=torch.ones(1))
    assert path.read_bytes() == mx.read_bytes()
    register_form("absent", "octavo_form_that_is_not_installed:make")
    with pytest.raises(
        ExportError, match=r"^form absent needs octavo_form_that_is_not_installed, which"
    ):
        check_forms(["absent"])


def test_names_that_are_taken_or_unknown(packed: Packed) -> None:
    with pytest.raises(ExportError, match=r"^register_form: there is a form 'lut' already; choose"):
        register_form("lut", "octavo.deploy.mx:make")
    with pytest.raises(
        ExportError, match=r"^form: expected one of lut, .*, got 'lot' \(the neares"
    ):
        check_forms(["mx", "lot"])
