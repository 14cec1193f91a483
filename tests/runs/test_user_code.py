"""The frames of a user's own code are told from those of octavo, torch and Python."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from octavo.network.forward import call
from octavo.runs.task import load_callable
from octavo.runs.user_code import told, user_traceback

SOURCE = """
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return nn.functional.linear(x, x, bias=self.missing)

def loads():
    raise ValueError("no such size")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_the_frames_begin_with_the_users_first(mine: Path) -> None:
    model: Any = load_callable(str(mine), "Model", "test")()
    with pytest.raises(AttributeError, match="missing") as raised:
        call(model, torch.ones(2, 2))  # octavo calls torch, which calls the model
    theirs = user_traceback(raised.value)
    assert theirs is not None
    assert theirs.tb_frame.f_code.co_filename == str(mine)
    assert "(mine.py, line 6)" in told(raised.value)


def test_an_error_of_octavos_own_has_no_such_frame() -> None:
    with pytest.raises(TypeError) as raised:
        call(nn.Linear(2, 2), ["no tensor"])
    assert user_traceback(raised.value) is None
    assert told(raised.value).startswith("TypeError: ")
    assert "line " not in told(raised.value)


def test_an_error_that_never_went_through_octavo_is_nobodys(mine: Path) -> None:
    with pytest.raises(ValueError, match="no such size") as raised:
        load_callable(str(mine), "loads", "test")()
    assert user_traceback(raised.value) is None
