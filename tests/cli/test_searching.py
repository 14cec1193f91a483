"""inspect and search: what they print and write."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search as search_bits
from octavo.formats.width import Apot
from octavo.plan import Budget, Plan
from octavo.ptq.calibration import calibrate
from octavo.runs.task import load_task
from octavo.storage.packed import Packed


def test_search_writes_a_plan_within_the_budget_and_shows_it(octavo: Callable[..., Any]) -> None:
    words = ["search", "tiny.py:Tiny", "--budget", "average_bits=3", "--pin", "2=4"]
    words += ["--trials", "20"]
    said = octavo(*words, "-o", "plan.yaml")
    assert (said.status, said.err) == (0, "")
    plan = Plan.load("plan.yaml")
    assert plan["2"] == 4
    assert plan.cost().average_bits <= 3
    assert f"{plan.cost().average_bits:.3f}" in said.out
    assert "written: plan.yaml" in said.out
    as_json = octavo(*words, "-o", "x", "--json")
    assert json.loads(as_json.out)["plan"] == dict(plan)


def test_search_names_the_command_for_the_form_of_file_that_it_priced(
    octavo: Callable[..., Any],
) -> None:
    words = ["search", "tiny.py:Tiny", *WIDE, "--method", "uniform", "-o", "p.yaml"]
    plain = octavo(*words).out
    small = octavo(*words, "--floats", "folded", "--coding", "small").out
    assert "octavo quantize tiny.py:Tiny --plan p.yaml -o p.safetensors" in unwrapped(plain)
    following = "--plan p.yaml --floats folded --coding small -o p.safetensors"
    assert following in unwrapped(small)
    words[-1] = "a plan.yaml"
    said = octavo(*words, "--option", "width=7", "--option", "name=a b").out
    *_, command = said.splitlines()
    assert command.startswith("next: octavo ")
    quantized = octavo(*shlex.split(command)[2:], "--method", "ptq", "--quiet")
    assert quantized.status == 0
    assert Packed.load("a plan.safetensors").layers["0"].codes.shape == (7, 5)


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_a_plan_that_search_wrote_is_what_quantize_quantizes(octavo: Callable[..., Any]) -> None:
    words = ["search", "tiny.py:Tiny", "--budget", "average_bits=4", "--trials", "20"]
    assert octavo(*words, "--pin", "2=5", "-o", "plan.yaml").status == 0
    words = ["quantize", "tiny.py:Tiny", "--bits", "plan.yaml", "--method", "ptq"]
    said = octavo(*words, "-o", "net.safetensors")
    assert (said.status, said.err) == (0, "")
    assert Packed.load("net.safetensors").plan == Plan.load("plan.yaml")
    Path("r.yaml").write_text("task: tiny.py:Tiny\nbits: plan.yaml\nmethod: ptq\n")
    assert octavo("run", "r.yaml").status == 0
    assert Packed.load("runs/r/packed.safetensors").plan == Plan.load("plan.yaml")
    words[3] = "plans.yaml"
    refused = octavo(*words, "-o", "net.safetensors")
    assert refused.status == 2
    assert "bits: there is no file plans.yaml" in refused.err


def test_a_plan_with_bits_of_inputs_is_quantized_as_it_says(octavo: Callable[..., Any]) -> None:
    Plan({"0": 3, "2": 4}, activations={"2": 8}).save("both.yaml")
    words = ["quantize", "tiny.py:Tiny", "--bits", "both.yaml", "--method", "ptq"]
    assert octavo(*words, "-o", "net.safetensors").status == 0
    packed = Packed.load("net.safetensors")
    assert packed.plan == {"0": 3, "2": 4}
    assert {name: form.bits for name, form in packed.activations.items()} == {"2": 8}


WIDE = ["--options", "2,3,4,5,6,7,8", "--trials", "24", "--budget", "average_bits=6"]


def test_search_refines_and_says_what_that_added(octavo: Callable[..., Any]) -> None:
    words = ["search", "tiny.py:Tiny", *WIDE, "--method", "random", "--refine", "0.2"]
    said = octavo(*words, "-o", "plan.yaml")
    assert (said.status, said.err) == (0, "")
    assert "best trial of the method alone: -" in said.out
    assert "the finalists, solved as they ship" in said.out
    assert "the trade-off" not in said.out
    shown = json.loads(octavo(*words, "-o", "plan.yaml", "--json").out)
    assert shown["refinement"]["added"] >= 0
    assert shown["method"] == "random"
    assert shown["score"] >= max(shown["uniform_score"], shown["exact_score"])
    assert shown["front"]
    assert "refine: expected a share" in octavo(*words[:-1], "1", "-o", "plan.yaml").err


def test_search_maximizes_the_tasks_own_score(octavo: Callable[..., Any]) -> None:
    words = ["search", "tiny.py:Tiny", *WIDE, "--method", "exact", "-o", "plan.yaml", "--json"]
    own = json.loads(octavo(*words, "--objective", "task").out)
    load_task("tiny.py:Tiny")
    task: Any = sys.modules["octavo_task_tiny"].Tiny()
    model = task.model()
    calibrate(model, own["plan"], task.calibration()).apply(model)
    assert own["score"] == pytest.approx(task.score(model))
    assert own["held_out"] == 0  # the task's score reads its own data
    assert own["score"] < json.loads(octavo(*words).out)["score"] < 0
    said = octavo(*words, "--objective", "tasks")
    assert said.status == 2
    assert "expected one of divergence, task, got 'tasks' (the nearest is 'task')" in said.err


def test_search_without_a_limit_prints_the_front(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict[str, Any]()

    def limited(*args: Any, **options: Any) -> SearchResult:
        asked.update(options)
        limit = Budget(average_bits=6)
        return search_bits(*args, **options | {"budget": limit, "objective": None})

    monkeypatch.setattr("octavo.dnq.searching.search", limited)
    words = ["search", "tiny.py:Tiny", *WIDE[:-2], "--method", "random", "-o", "plan.yaml"]
    said = octavo(*words)
    assert (said.status, said.err) == (0, "")
    assert (asked["budget"], asked["trade_off"], asked["objective"]) == (None, None, None)
    assert "the trade-off" in said.out
    assert "bytes are estimated" in said.out
    assert Plan.load("plan.yaml")


def test_search_takes_bits_of_inputs(octavo: Callable[..., Any]) -> None:
    words = ["search", "tiny.py:Tiny", "--activations", "4,8", "--budget", "bit_ops=100000"]
    rest = ["--method", "exact", "-o", "both.yaml"]
    said = octavo(*words, *rest)
    assert "bit operations" in said.out
    assert "x8" in said.out
    plan = Plan.load("both.yaml")
    assert set(plan.activations) == set(plan)
    shown = json.loads(octavo(*words, *rest, "--json").out)
    assert (shown["activations"], shown["bit_ops"]) == (plan.activations, plan.cost().bit_ops)
    words[-1] = "average_bits=3"
    assert "expected a budget of bit_ops" in octavo(*words, *rest).err


def test_search_and_quantize_take_widths_of_both_codebooks(octavo: Callable[..., Any]) -> None:
    words = [
        "search",
        "tiny.py:Tiny",
        "--options",
        "4,5,apot6",
        "--budget",
        "average_bits=6",
        "--pin",
        "2=apot7",
    ]
    words += ["--trials", "20", "--method", "greedy"]
    said = octavo(*words, "-o", "plan.yaml")
    assert (said.status, said.err) == (0, "")
    plan = Plan.load("plan.yaml")
    assert plan["2"] == Apot(7)
    assert set(plan.values()) <= {4, 5, Apot(6), Apot(7)}
    assert "apot7" in said.out
    assert json.loads(octavo(*words, "-o", "x", "--json").out)["plan"]["2"] == "apot7"
    assert (
        octavo(
            "quantize",
            "tiny.py:Tiny",
            "--bits",
            "apot6",
            "--method",
            "ptq",
            "-o",
            "net.safetensors",
        ).status
        == 0
    )
    assert set(Packed.load("net.safetensors").plan.values()) == {Apot(6)}
    said = octavo(
        "search", "tiny.py:Tiny", "--options", "4,apot3", "--budget", "average_bits=6", "-o", "y"
    )
    assert said.status == 2
    assert (
        "options: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 'apot3'" in said.err
    )
