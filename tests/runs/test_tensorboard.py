"""The numbers of a run for TensorBoard, as a writer gets them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.dnq.evaluator import Trial
from octavo.errors import OctavoError
from octavo.formats.width import Width
from octavo.plan import Plan
from octavo.progress import Event
from octavo.ptq.freezer import LayerResult
from octavo.runs import tensorboard
from octavo.runs.tensorboard import scalars_to
from octavo.runs.training import StepFigures


class Writer:
    """It keeps the scalars that it is given."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_each_number_has_its_name_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    monkeypatch.setattr(tensorboard, "_writer", lambda _: writer)
    seen: list[Event] = []
    events = [
        Event("note", message="full precision: 1"),
        Event("retrain", message="quantized, stage 1/2"),
        Event("calibrate", 1, 2, detail=LayerResult("a", Width(3), 0.25, 0.125, 1, 2)),
        Event("retrain", 5, 9, "quantized, stage 1/2", StepFigures(1.0, 0.5, 2.0)),
        Event("search", 7, 9, detail=Trial(Plan({"a": 3}), (0,), -0.5, 2.0, -0.25)),
        Event("policy", 7, 9, detail=object()),
    ]
    with scalars_to(Path("anywhere"), seen.append) as watch:
        for event in events:
            watch(event)
    assert writer.scalars == [
        ("PTQ/error", 0.125, 1),
        ("PTQ/error at the nearest levels", 0.25, 1),
        ("quantized, stage 1/2/loss", 0.5, 5),
        ("search/objective", -0.5, 7),
        ("search/reward", -0.25, 7),
    ]
    assert (seen, writer.closed) == (events, True)


def test_without_a_folder_nothing_is_written() -> None:
    with scalars_to(None, print) as watch:
        assert watch is print


def test_without_tensorboard_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with (
        pytest.raises(OctavoError, match=r"install octavo with its extra tensorboard$"),
        scalars_to(tmp_path, print),
    ):
        pass


def test_the_writer_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(folder: str) -> Writer:
        made.append(folder)
        return Writer()

    module = SimpleNamespace(SummaryWriter=make)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", module)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(writer=module))
    with scalars_to(tmp_path / "here", print):
        pass
    assert made == [str(tmp_path / "here")]
