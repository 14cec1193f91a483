"""The commands as people type them, in an empty folder with a tiny task and a recipe in it."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from octavo import cli

TASK = """
import torch
from torch import nn
from torch.nn import functional as F

def examples(seed):
    x = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(seed))
    return [(some, some[:, :3].argmax(1)) for some in x]

class Tiny:
    def __init__(self, width: int = 6, name: str = ""):
        self.width = width

    def model(self):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            first, last = nn.Linear(5, self.width), nn.Linear(self.width, 3)
            return nn.Sequential(first, nn.ReLU(), last).eval()

    def calibration(self):
        return [x for x, _ in examples(0)]

    def train_batches(self):
        return [examples(1)[i] for i in torch.randperm(4)]

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def score(self, model):
        with torch.no_grad():
            return -sum(F.cross_entropy(model(x), y).item() for x, y in examples(2))

class Silent(Tiny):
    def calibration(self):
        return []

class Normed(Tiny):
    def model(self):
        return nn.BatchNorm1d(5)

class Broken(Tiny):
    def loss(self, model, batch):
        return super().loss(model, batch) * float("nan")

class NoFile(Tiny):
    def model(self):
        return open("weights.pt")

class Lacking:
    def model(self):
        return None
    def loss(self, model, batch):
        return None
"""
RECIPE = "task: tiny.py:Tiny\nbits: 3\nportions: [0.5, 1]\nretraining: {learning_rate: 0.05}\n"


class Said(NamedTuple):
    status: int
    out: str
    err: str


Octavo = Callable[..., Said]


@pytest.fixture
def octavo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Octavo:
    """Runs the entry point in the folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a task adds to it
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    Path("tiny.py").write_text(TASK)
    Path("r.yaml").write_text(RECIPE)

    def call(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["octavo", *words])
        with torch.random.fork_rng(devices=[]), pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return Said(int(stop.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file of the tiny task, made once for all tests."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "tiny.py").write_text(TASK)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        words = ["octavo", "quantize", "tiny.py:Tiny", "-o", "net.safetensors", "--json"]
        patch.setattr(sys, "argv", [*words, "--set", "epochs=0"])
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main()
    return folder / "net.safetensors"


@pytest.fixture
def packed(octavo: Octavo, packed_once: Path) -> Path:
    """A packed file of the tiny task in the folder of this test."""
    return Path(shutil.copy(packed_once, "net.safetensors"))


@pytest.fixture
def files() -> Callable[[], dict[str, str]]:
    """Lists everything below the working directory, by name and content."""

    def listed() -> dict[str, str]:
        paths = (path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts)
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in paths
        }

    return listed


@pytest.fixture
def refused(octavo: Octavo, files: Callable[[], dict[str, str]]) -> Callable[..., str]:
    """Returns what a command says that fails: one line on stderr, exit status 2, and no file that
    was not there before."""

    def said(*words: str) -> str:
        before = files()
        said = octavo(*words)
        assert said.status == 2
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.startswith("octavo: ")
        assert files() == before
        return said.err.removeprefix("octavo: ").rstrip("\n")

    return said
