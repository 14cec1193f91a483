"""The benchmark of a GPU says that it needs one; its rows run on a CPU in tiny sizes."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    monkeypatch.setitem(names["main"].__globals__, "write_json", None)  # a dry run writes nothing
    return names


def test_without_a_gpu_it_says_what_it_needs(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^gpu.py: expected a GPU that CUDA sees, found none; -"):
        script["main"]([])


@pytest.mark.parametrize(
    ("only", "figures"),
    [
        ("ResNet-20, batch", ("bare where, ratio", "half frozen, ratio", "straight through, ms")),
        ("ResNet-50, batch", ("straight through, ratio",)),
        ("stops", ("stops in three steps",)),
        ("project", ("4,096: project / clone", "4,096: encode / clone")),
        ("fit", ("clones",)),
        ("ViT", ("seconds",)),
    ],
)
def test_a_dry_run_measures_the_rows(
    only: str, figures: tuple[str, ...], script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    script["main"](["--dry-run", "--only", only])
    (line,) = capsys.readouterr().out.splitlines()
    assert only in line
    assert all(f"'{figure}': " in line for figure in figures)


def test_no_row_begins_after_the_deadline(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    script["main"](["--dry-run", "--minutes", "-1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(script["ROWS"])
    assert all("left out" in line for line in lines)


def test_the_networks_are_those_of_the_papers(script: dict[str, Any]) -> None:
    with torch.device("meta"):
        networks = script["ResNet50"](), script["ViT"](script["ViTSize"]())
    counts = [sum(one.numel() for one in network.parameters()) for network in networks]
    assert counts == [25_557_032, 86_567_656]  # as torchvision has them
