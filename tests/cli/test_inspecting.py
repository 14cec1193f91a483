"""inspect: what it prints of networks, plans and packed files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.plan import Plan


def test_inspect_shows_the_layers_of_a_packed_file(
    octavo: Callable[..., Any], packed: Path
) -> None:
    said = octavo("inspect", str(packed))
    assert (said.status, said.err) == (0, "")
    assert "quantized layers" in said.out
    shown = json.loads(octavo("inspect", str(packed), "--json").out)
    verified = json.loads(octavo("verify", str(packed), "--json").out)
    layers = shown.pop("layers")
    assert [(row["name"], row["bits"]) for row in layers] == [("0", 3), ("2", 3)]
    assert sum(row["weights"] for row in layers) == 48
    assert shown == {key: value for key, value in verified.items() if key in shown}
    assert f"    file bytes  {packed.stat().st_size:,}" in said.out


def test_inspect_prints_what_can_be_quantized(octavo: Callable[..., Any]) -> None:
    said = octavo("inspect", "tiny.py:Tiny", "-O", "width=7")
    assert said.status == 0
    assert [line.split()[1:10:2] for line in said.out.splitlines() if "linear" in line] == [
        ["0", "linear", "7x5", "35", "35"],
        ["2", "linear", "3x7", "21", "21"],
    ]
    assert "biases stay in float" in said.out
    assert "feasible: 2 to 8 bits, 14 to 56 nominal bytes" in said.out


def test_inspect_as_json(octavo: Callable[..., Any]) -> None:
    said = octavo("inspect", "tiny.py:Tiny", "--json")
    found = json.loads(said.out)
    assert [(row["name"], row["shape"], row["macs"]) for row in found["rows"]] == [
        ("0", [6, 5], 30),
        ("2", [3, 6], 18),
    ]
    assert {skip["name"] for skip in found["skipped"]} == {"0.bias", "2.bias"}
    assert (found["cheapest"]["bytes"], found["dearest"]["bytes"]) == (12, 48)


def test_inspect_does_without_an_example(octavo: Callable[..., Any]) -> None:
    said = octavo("inspect", "tiny.py:Silent", "--json")
    assert [row["macs"] for row in json.loads(said.out)["rows"]] == [None, None]


def test_inspect_says_why_nothing_can_be_quantized(octavo: Callable[..., Any]) -> None:
    said = octavo("inspect", "tiny.py:Normed")
    assert said.status == 0
    assert said.out.startswith("no layer can be quantized\n")
    assert "multiply-accumulates" not in said.out
    assert "norms stay in float" in said.out
    assert "feasible" not in said.out


def test_inspect_tells_files_by_what_they_hold(octavo: Callable[..., Any], packed: Path) -> None:
    Plan({"0": 3, "2": 4}).save("a plan.txt")
    packed.rename("net.bin")
    assert json.loads(octavo("inspect", "a plan.txt", "--json").out)["bits"] == {"0": 3, "2": 4}
    assert "quantized layers" in octavo("inspect", "net.bin").out
    for missing in ("net.safetensors", "plan.yaml"):
        said = octavo("inspect", missing)
        assert (said.status, "No such file" in said.err) == (2, True)
    assert "task: expected one of" in octavo("inspect", "tiny.py").err


def test_names_are_whole_on_a_narrow_terminal(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers whose names are cut look alike."""
    monkeypatch.setenv("COLUMNS", "40")
    Path("deep.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.ModuleDict({'a_name_of_24_characters_1': nn.Linear(300, 400)})\n"
    )
    said = octavo("inspect", "deep.py:net")
    assert "…" not in said.out
    assert "120,000" in said.out
    column = [line.split("│")[1].strip() for line in said.out.splitlines() if "│" in line]
    assert "".join(column).startswith("a_name_of_24_characters_1")
