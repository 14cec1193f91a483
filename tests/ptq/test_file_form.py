"""The form of a file: what is asked for, and the default where a small file is asked for."""

from typing import Any

import pytest
import torch
from torch import nn

import octavo.storage.coding.small
from octavo.errors import FormatError, PlanError
from octavo.plan import Budget, Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.file_form import FileForm

FORMS: tuple[Any, ...] = ("folded", None)


@pytest.mark.parametrize(
    ("asked", "floats"),
    [
        ({}, "float32"),
        ({"rate": 1.0}, None),
        ({"budget": Budget(bytes=9)}, None),
        ({"budget": Budget(ratio=9)}, None),
        ({"budget": Budget(average_bits=3)}, "float32"),
    ],
)
def test_norms_are_folded_by_default_where_a_small_file_is_asked_for(
    asked: dict[str, Any], floats: Any
) -> None:
    assert FileForm.asked(None, None, **asked) == FileForm(floats=floats)
    for given in ("float32", "float16", "folded"):
        assert FileForm.asked(given, "fast", **asked) == FileForm(floats=given)


@pytest.mark.parametrize("form", [{"floats": "half"}, {"coding": "tiny"}, {"coding": None}])
def test_what_is_no_form_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"(floats|coding): expected one of 'f.*, got"):
        FileForm(**form)


def test_a_coding_without_its_library_is_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise FormatError("not there")

    monkeypatch.setattr(octavo.storage.coding.small, "_library", missing)
    FileForm()
    with pytest.raises(FormatError, match="not there"):
        calibrate(nn.Linear(2, 2), {"": 3}, [], coding="small")


def test_a_network_in_each_form() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    inputs = [torch.randn(70, 8)]
    packed = calibrate(model, Plan.uniform(model, 3), inputs)
    assert FileForm().of(packed, model, iter(())).file_bytes == packed.file_bytes
    sizes = [FileForm(floats=form).of(packed, model, inputs).file_bytes for form in FORMS]
    assert sizes[0] == sizes[1] < packed.file_bytes
    pytest.importorskip("constriction")
    assert FileForm(coding="small").of(packed, model, ()).coding == "small"
