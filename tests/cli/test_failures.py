"""Mistakes that everybody makes, each by what is said of it; and errors in the user's own task."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import failures

TROUBLE = """
from tiny import Tiny, F
import torch, warnings

class Raises(Tiny):
    def train_batches(self):
        raise KeyError("labels")

class Deep(Tiny):
    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1].float())

class NoModel(Tiny):
    def model(self):
        return torch.load("weights.pt")

class Reads(Tiny):
    def train_batches(self):
        return open("images.npy")

class Nan(Tiny):
    def score(self, model):
        return float("nan")

class Nothing(Tiny):
    def score(self, model):
        super().score(model)

class Worse(Tiny):
    asked = 0
    def score(self, model):
        Worse.asked += 1
        return float("nan") if Worse.asked > 1 else 90.0
"""


@pytest.fixture
def trouble(octavo: Callable[..., Any]) -> Callable[..., Any]:
    Path("trouble.py").write_text(TROUBLE)

    def call(name: str, *words: str) -> Any:
        return octavo("run", "r.yaml", "--set", f"task=trouble.py:{name}", *words)

    return call


@pytest.mark.parametrize(
    ("task", "last", "line"),
    [
        ("Raises", "KeyError: 'labels'", 'raise KeyError("labels")'),
        ("Reads", "FileNotFoundError: [Errno 2]", 'open("images.npy")'),
    ],
)
def test_an_error_in_the_users_task_shows_their_lines_and_not_octavos(
    task: str, last: str, line: str, trouble: Callable[..., Any]
) -> None:
    said = trouble(task)
    assert said.status == 1
    lines = said.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert 'trouble.py", line' in lines[1]
    assert line in said.err
    assert lines[-2].startswith(last)
    assert lines[-1] == (
        "octavo: the task failed, see above; --debug shows the frames of octavo too"
    )
    assert "octavo/runs" not in said.err
    assert "typer" not in said.err


def test_the_frames_of_torch_that_the_task_called_stay(trouble: Callable[..., Any]) -> None:
    said = trouble("Deep", "--set", "retraining.labels=1")
    assert said.status == 1
    assert "functional.py" in said.err
    assert "batch[1].float()" in said.err
    assert "octavo/runs" not in said.err


def test_with_debug_every_frame_is_shown(trouble: Callable[..., Any]) -> None:
    with pytest.raises(KeyError, match="labels"):
        trouble("Raises", "--debug")


def test_an_error_while_the_model_is_made_names_its_line(trouble: Callable[..., Any]) -> None:
    said = trouble("NoModel")
    assert said.status == 2
    assert "its model() failed: FileNotFoundError" in said.err
    assert said.err.endswith("(trouble.py, line 15)\n")


@pytest.mark.parametrize(("task", "got"), [("Nan", "nan"), ("Nothing", "None")])
def test_a_metric_that_is_no_number_stops_a_run_at_once(
    task: str, got: str, trouble: Callable[..., Any], files: Callable[[], dict[str, str]]
) -> None:
    said = trouble(task)
    assert said.status == 2
    assert said.err == (
        f"octavo: task 'trouble.py:{task}': expected a finite number from its score(), "
        f"the metric, got {got} for the full-precision network; return a float, where higher is "
        "better\n"
    )
    assert not Path("runs").exists()


def test_a_metric_that_becomes_nan_stops_a_run_before_its_control(
    trouble: Callable[..., Any],
) -> None:
    said = trouble("Worse")
    assert said.status == 2
    assert "the quantized network, which is kept in runs/r/packed.safetensors" in said.err
    assert Path("runs/r/packed.safetensors").exists()
    assert not list(Path("runs").glob("control-*"))
    assert not Path("runs/r/result.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["run", "r.yaml", "--set", "retraining.lr=0.1"],
            "r.yaml: unknown key 'retraining.lr': write retraining.learning_rate",
        ),
        (
            ["run", "r.yaml", "--set", "lr=0.1"],
            ("r.yaml: unknown key 'lr': write retraining.learning_rate or prune.learning_rate"),
        ),
        (
            ["run", "r.yaml", "--set", "budget.bytes=9"],
            "r.yaml: unknown key 'budget': write ptq.budget or search.budget",
        ),
        (
            ["run", "r.yaml", "--set", "retraining.xyz=0.1"],
            (
                "r.yaml: unknown key 'retraining.xyz'; expected one of learning_rate, momentum, "
                "weight_decay, clip, temperature, labels, accumulate, bfloat16"
            ),
        ),
        (
            ["quantize", "tiny.py:Tiny", "-o", "nowhere/net.safetensors"],
            (
                "nowhere/net.safetensors: the folder nowhere does not exist; make it first: "
                "mkdir -p nowhere"
            ),
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "no/plan.yaml", "--budget", "average_bits=3"],
            "no/plan.yaml: the folder no does not exist; make it first: mkdir -p no",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_the_line_to_write_instead(
    words: list[str], said: str, refused: Callable[..., str]
) -> None:
    assert refused(*words) == said


def test_an_export_into_a_folder_that_does_not_exist(
    packed: Path, refused: Callable[..., str]
) -> None:
    words = ["export", str(packed), "-t", "tiny.py:Tiny", "-o", "no/x.onnx"]
    assert refused(*words).startswith("no/x.onnx: the folder no does not exist")


def test_a_warning_of_octavo_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with failures.warnings_as_lines():
        warnings.simplefilter("always")
        file = str(failures.PACKAGE / "ptq" / "measuring.py")
        warnings.warn_explicit("far from\nfull precision", UserWarning, file, 1)
    assert capsys.readouterr().err == "octavo: warning: far from full precision\n"


def test_result_files_are_strict_json(octavo: Callable[..., Any]) -> None:
    """Python reads the bare word NaN, which no other reader of JSON does."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    assert octavo("run", "r.yaml", "--set", "control=false").status == 0
    for path in Path("runs").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.filterwarnings("default::UserWarning")
def test_retraining_that_diverges_is_told(octavo: Callable[..., Any]) -> None:
    """Its steps stay finite: the gradient is clipped, so that nothing stops the run."""
    words = ["retraining.learning_rate=300", "retraining.labels=1", "retraining.clip=1000"]
    settings = [word for each in words for word in ("--set", each)]
    said = octavo("run", "r.yaml", *settings, "--set", "epochs=4", "--set", "control=false")
    assert said.status == 0
    assert "octavo: warning: quantized, stage 1/2: retraining diverged: its loss rose" in said.err
    assert "--set retraining.learning_rate=30, in another folder" in said.err
