"""The files to begin with: nothing is lost for them, and what is proposed exists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import starting


@pytest.mark.parametrize("name", starting.FILES)
def test_it_writes_over_nothing(name: str, refused: Callable[..., str]) -> None:
    Path(name).write_text("mine")
    assert refused("init") == f"{name}: there already; move it away, or begin in another folder"
    assert Path(name).read_text() == "mine"


def test_each_command_that_it_proposes_names_a_file_that_it_wrote(
    octavo: Callable[..., Any],
) -> None:
    lines = [line.split() for line in octavo("init").out.splitlines() if "  octavo " in line]
    assert [Path(words[2].partition(":")[0]).is_file() for words in lines] == [True, True]
    assert octavo("init", "--quiet").status == 2
