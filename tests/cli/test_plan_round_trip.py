"""A plan on its way through the command line: found, shown, edited by hand, quantized, exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.plan import Plan
from octavo.storage.packed import Packed


@pytest.fixture
def plan(octavo: Callable[..., Any]) -> Path:
    """A plan that a search wrote, one line of which was edited as text."""
    words = ["search", "tiny.py:Tiny", "--budget", "average_bits=4", "--trials", "20"]
    assert octavo(*words, "--pin", "0=5", "-o", "plan.yaml").status == 0
    path = Path("plan.yaml")
    text = path.read_text()
    assert "  '0': 5\n" in text
    path.write_text(text.replace("  '0': 5\n", "  '0': 2\n", 1))
    return path


def test_it_is_shown_as_a_table(plan: Path, octavo: Callable[..., Any]) -> None:
    said = octavo("inspect", "plan.yaml")
    assert (said.status, said.err) == (0, "")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[:2] == [["layer", "bits", "weights"], ["0", "2", "30"]]
    assert lines[3][1:4] == ["bits", "on", "average,"]
    assert json.loads(octavo("inspect", "plan.yaml", "--json").out)["bits"]["0"] == 2


def test_every_command_that_quantizes_takes_it(plan: Path, octavo: Callable[..., Any]) -> None:
    edited = Plan.load(plan)
    assert edited["0"] == 2
    words = ["quantize", "tiny.py:Tiny", "--plan", "plan.yaml", "--method", "ptq"]
    assert octavo(*words, "-o", "net.safetensors").status == 0
    assert Packed.load("net.safetensors").plan == edited
    words = ["run", "r.yaml", "--set", "bits=plan.yaml", "--set", "method=ptq"]
    assert octavo(*words).status == 0
    assert Packed.load("runs/r/packed.safetensors").plan == edited
    said = octavo("export", "--plan", "plan.yaml", "-t", "tiny.py:Tiny", "-o", "a.onnx", "--json")
    assert said.status == 0
    words = ["export", "net.safetensors", "-t", "tiny.py:Tiny", "-o", "b.onnx"]
    assert octavo(*words).status == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_bits_of_inputs_come_along(octavo: Callable[..., Any]) -> None:
    Plan({"0": 3, "2": 4}, activations={"2": 8}).save("both.yaml")
    assert octavo("inspect", "both.yaml").out.splitlines()[2].split() == ["2", "4", "8"]
    words = ["quantize", "tiny.py:Tiny", "--plan", "both.yaml", "--method", "ptq"]
    assert octavo(*words, "-o", "net.safetensors").status == 0
    packed = Packed.load("net.safetensors")
    assert {name: form.bits for name, form in packed.activations.items()} == {"2": 8}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["quantize", "tiny.py:Tiny", "--plan", "p.yaml", "--bits", "3", "-o", "x"],
            "expected one of --bits and --plan, got both: 3 and p.yaml",
        ),
        (
            ["quantize", "tiny.py:Tiny", "--plan", "p.yaml", "-o", "x"],
            "p.yaml: not a readable plan: ",
        ),
        (
            ["export", "-t", "tiny.py:Tiny", "-o", "x"],
            "expected either a packed network or --plan, got both or neither",
        ),
        (["inspect", "p.yaml"], "p.yaml: not a readable plan: "),
    ],
)
def test_what_is_refused(words: list[str], said: str, refused: Callable[..., str]) -> None:
    assert refused(*words).startswith(said)
