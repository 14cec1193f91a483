"""How a task is found, made and checked, and what is said when it cannot be."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import OctavoError, RecipeError
from octavo.runs.task import load_task

WHOLE = """
from torch import nn
from dataclasses import dataclass
{extra}
@dataclass
class Mine:
    width: int
    depth: int = 2
    def model(self): return nn.Linear(self.width, 1)
    def calibration(self): return []
    def train_batches(self): return []
    def loss(self, model, batch): return 0
    def score(self, model): return 0.0

class Bare:
    def model(self): return None
    def loss(self, model, batch): return None

class Breaks:
    def __init__(self): raise KeyError("inside")

class Refuses:
    def __init__(self, **anything):
        from octavo.errors import OctavoError
        raise OctavoError("no data: " + ", ".join(anything))

def make(**anything): return Mine(**anything)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("octavo_task_", "usertasks", "helper")):
            del sys.modules[name]


def write(path: Path, extra: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WHOLE.format(extra=extra))
    return path


def test_a_task_from_a_file(folder: Path) -> None:
    write(folder / "sub" / "mine.py")
    for name in ("sub/mine.py:Mine", f"{folder}/sub/mine.py:Mine"):
        task: Any = load_task(name, {"width": 3})
        assert (task.width, task.depth) == (3, 2)
        assert task.model().weight.shape == (1, 3)
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_file_may_import_its_neighbour(folder: Path) -> None:
    write(folder / "sub" / "mine.py", "import helper_of_mine")
    (folder / "sub" / "helper_of_mine.py").write_text("")
    load_task("sub/mine.py:Mine", {"width": 1})


def test_a_task_from_a_package_in_the_working_directory(folder: Path) -> None:
    write(folder / "usertasks" / "inner.py")
    task: Any = load_task("usertasks.inner:Mine", {"width": 1, "depth": 5})
    assert task.depth == 5


def test_a_function_that_makes_a_task(folder: Path) -> None:
    write(folder / "mine.py")
    made: Any = load_task("mine.py:make", {"width": 9})
    assert made.width == 9


@pytest.mark.parametrize(
    ("name", "options", "cause"),
    [
        (
            "digit",
            {},
            (
                r"task: expected one of digits, cifar10, image_folder, .*, "
                r"got 'digit' \(the nearest is 'digits'\)"
            ),
        ),
        ("", {}, "task: expected one of .* got ''$"),
        ("mine.py", {}, "path/to/file.py:Class, got 'mine.py'$"),
        ("mine.py:", {}, "got 'mine.py:'$"),
        ("none.py:Mine", {}, "there is no file none.py"),
        (
            "usertasks_none.x:Mine",
            {},
            "importing usertasks_none.x failed: ModuleNotFoundError: No module named",
        ),
        ("broken.py:Mine", {}, "importing broken.py failed: ZeroDivisionError: division by zero"),
        ("syntax.py:Mine", {}, "importing syntax.py failed: SyntaxError"),
        ("mine.py:Mime", {}, r"mine.py has no class or function 'Mime' \(the nearest is 'Mine'\)"),
        ("mine.py:number", {}, "mine.py has no class or function 'number'$"),
        (
            "mine.py:Mine",
            {"width": 1, "dept": 2},
            r"options width, depth, got 'dept' \(the nearest is 'depth'\)",
        ),
        ("mine.py:Mine", {}, "expected a value for each of the options width; got none"),
        ("mine.py:Breaks", {"x": 1}, "expected no options, got 'x'$"),
        ("mine.py:Breaks", {}, "making it failed: KeyError: 'inside'"),
        (
            "mine.py:Bare",
            {},
            "expected the methods model, .*; calibration, train_batches, score missing",
        ),
    ],
)
def test_what_cannot_be_loaded(
    name: str, options: dict[str, Any], cause: str, folder: Path
) -> None:
    write(folder / "mine.py")
    (folder / "broken.py").write_text("1 / 0")
    (folder / "syntax.py").write_text("def (:")
    with pytest.raises(RecipeError, match=cause) as caught:
        load_task(name, options)
    assert "\n" not in str(caught.value)
    assert "octavo_task_broken" not in sys.modules


def test_what_the_task_itself_refuses_is_passed_on(folder: Path) -> None:
    write(folder / "mine.py")
    with pytest.raises(OctavoError, match=r"^no data: a, b$"):
        load_task("mine.py:Refuses", {"a": 1, "b": 2})
