"""Ctrl-C and SIGTERM: what is said, the exit status, and that the same command goes on."""

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.runs import checkpoints

STOPS = """
import signal
from tiny import Tiny

class Stops(Tiny):
    steps = 0
    scores = 0
    at = {}

    def loss(self, model, batch):
        Stops.steps += 1
        if Stops.steps == Stops.at.get("step"):
            signal.raise_signal(signal.Signals[Stops.at["signal"]])
        return super().loss(model, batch)

    def score(self, model):
        Stops.scores += 1
        if Stops.scores == Stops.at.get("score"):
            signal.raise_signal(signal.Signals[Stops.at["signal"]])
        return super().score(model)
"""


@pytest.fixture
def stops(octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of a task that sends a signal to the process where it is told to."""
    Path("stops.py").write_text(STOPS)
    monkeypatch.syspath_prepend(Path.cwd())
    for name in ("tiny", "stops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("stops").Stops
    for name in ("tiny", "stops"):
        sys.modules.pop(name, None)


LABELS = ("--set", "task=stops:Stops", "--set", "retraining.labels=0.5", "--set", "control=false")


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_is_interrupted_says_what_is_kept_and_goes_on(
    name: str, status: int, octavo: Callable[..., Any], stops: Any
) -> None:
    assert octavo("run", "r.yaml", *LABELS, "--folder", "whole").status == 0
    stops.steps, stops.at = 0, {"step": 2, "signal": name}
    said = octavo("run", "r.yaml", *LABELS, "--folder", "cut")
    assert said.status == status
    last = said.err.splitlines()[-1]
    assert last == (
        "octavo: interrupted; quantized, stage 1/2, step 2 of 4 is kept in cut/quantized-stage.pt. "
        "The same command goes on from there"
    )
    assert "Traceback" not in said.err
    assert stops.steps == 2
    stops.at = {}
    assert octavo("run", "r.yaml", *LABELS, "--folder", "cut").status == 0
    assert stops.steps == 4
    whole, cut = (Path(f"{folder}/packed.safetensors") for folder in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()


def test_a_signal_where_nothing_can_be_kept_ends_the_command(
    octavo: Callable[..., Any], stops: Any, packed: Path
) -> None:
    stops.scores, stops.at = 0, {"score": 1, "signal": "SIGINT"}
    said = octavo("evaluate", str(packed), "--task", "stops:Stops")
    assert (said.status, said.out) == (130, "")
    assert said.err == "octavo: interrupted; nothing was under way that could be kept\n"


def test_a_search_that_is_interrupted_keeps_its_trials(
    octavo: Callable[..., Any], stops: Any
) -> None:
    words = ["search", "stops:Stops", "--objective", "task", "--budget", "average_bits=6"]
    words += ["--trials", "40", "--method", "random", "--options", "2,3,4,5,6,7,8"]
    assert octavo(*words, "--journal", "whole.jsonl", "-o", "whole.yaml").status == 0
    stops.scores, stops.at = 0, {"score": 20, "signal": "SIGINT"}
    said = octavo(*words, "--journal", "cut.jsonl", "-o", "cut.yaml")
    assert said.status == 130
    assert said.err == (
        "octavo: interrupted; the trials so far are kept in cut.jsonl. "
        "The same command goes on from there\n"
    )
    kept = Path("cut.jsonl").read_text()
    assert kept
    assert Path("whole.jsonl").read_text().startswith(kept)
    stops.at = {}
    assert octavo(*words, "--journal", "cut.jsonl", "-o", "cut.yaml").status == 0
    assert Path("cut.yaml").read_text() == Path("whole.yaml").read_text()
    assert Path("cut.jsonl").read_text() == Path("whole.jsonl").read_text()


IMPORTS = """
import signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            signal.raise_signal(signal.{signal})

from octavo.cli import main
sys.meta_path.insert(0, Finder())
sys.argv = ["octavo", "inspect", "digits"]
main()
"""


@pytest.mark.parametrize("name", ["typer", "torch"])
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_there_is_no_traceback_while_modules_are_imported(
    name: str, number: str, status: int
) -> None:
    code = IMPORTS.format(name=name, signal=number)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_handlers_are_put_back(octavo: Callable[..., Any]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    octavo("--version")
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_state_inside_a_stage_is_saved_as_often_as_asked(
    octavo: Callable[..., Any], stops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    write = checkpoints.write_checkpoint

    def note(path: Path, content: Any) -> None:
        seen.append(path.name)
        write(path, content)

    for module in ("stages", "running_stage"):
        monkeypatch.setattr(f"octavo.runs.{module}.write_checkpoint", note)
    assert octavo("run", "r.yaml", *LABELS, "--save-every", "0").status == 0
    assert seen == [*["quantized-stage.pt"] * 3, "quantized.pt", "quantized.pt"]
    assert "Minutes of retraining" in octavo("run", "--help").out
