"""demo, run and quantize: what they print, where, and what they leave behind."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.runs import recipes
from octavo.storage.packed import Packed


def test_the_demo_says_where_its_folder_is(octavo: Callable[..., Any]) -> None:
    assert "[default: runs/demo]" in octavo("demo", "--help").out
    assert "default: runs/ and the recipe's name" in octavo("run", "--help").out


def test_run_ends_in_a_table_and_the_second_time_does_nothing(
    octavo: Callable[..., Any], files: Callable[[], dict[str, str]]
) -> None:
    said = octavo("run", "r.yaml")
    assert (said.status, said.err) == (0, "")
    result = json.loads(Path("runs/r/result.json").read_text())
    assert f"│ {result['float_score']:.3f} │" in " ".join(said.out.split())
    assert "quantized, stage 1/2  step 4/4  epoch 1.00" in said.out
    assert "the network: runs/r/packed.safetensors   the figures: runs/r/result.json" in said.out
    before = files()
    again = octavo("run", "r.yaml")
    complete = "runs/r is complete: nothing to do; name another --folder to run afresh\n"
    assert again.out.startswith(complete)
    assert again.out.endswith(said.out[said.out.index("full precision against") :])
    assert files() == before


def test_run_as_json_prints_json_only_on_stdout(octavo: Callable[..., Any]) -> None:
    said = octavo(
        "run",
        "r.yaml",
        "--json",
        "--folder",
        "here/r",
        "--set",
        "bits={'0': 5}",
        "--set",
        "control=false",
    )
    assert json.loads(said.out) == json.loads(Path("here/r/result.json").read_text())
    assert json.loads(said.out)["recipe"]["bits"] == {"0": 5}
    assert "quantized, stage 1/2" in said.err


def test_run_publishes_beside_the_recipe(octavo: Callable[..., Any]) -> None:
    Path("bench").mkdir()
    Path("bench/r.yaml").write_text(
        Path("r.yaml").read_text() + "publish: results/tiny\ncontrol: false\n"
    )
    said = octavo("run", "bench/r.yaml")
    assert (
        "published: bench/results/tiny.json\npublished: bench/results/tiny.safetensors\n"
        in said.out
    )
    assert (
        Path("bench/results/tiny.safetensors").read_bytes()
        == Path("runs/r/packed.safetensors").read_bytes()
    )


def test_run_takes_the_name_of_a_recipe_that_comes_with_it(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("shipped").mkdir()
    shutil.copy("r.yaml", "shipped/mine.yaml")
    Path("mine").mkdir()  # a folder of that name is no recipe
    monkeypatch.setattr(recipes, "RECIPES", Path("shipped").resolve())
    assert octavo("run", "mine", "--set", "control=false").status == 0
    assert Path("runs/mine/result.json").exists()


def test_quantize_writes_a_file_that_verifies_and_scores_as_it_said(
    octavo: Callable[..., Any],
) -> None:
    words = (
        "quantize",
        "tiny.py:Tiny",
        "-O",
        "width=7",
        "--bits",
        "4",
        "-o",
        "net.safetensors",
        "--set",
        "portions=[0.5, 1]",
    )
    said = octavo(*words, "--json")
    result = json.loads(said.out)
    assert result["recipe"]["options"] == {"width": 7}
    assert (result["nominal_bits"], result["file_bytes"]) == (
        4.0,
        Path("net.safetensors").stat().st_size,
    )
    assert octavo("verify", "net.safetensors").status == 0
    evaluated = json.loads(
        octavo("evaluate", "net.safetensors", "-t", "tiny.py:Tiny", "-O", "width=7", "--json").out
    )
    assert evaluated["score"] == result["score"]
    assert "written: net.safetensors" in octavo(*words).out


def test_quantize_within_a_budget_in_the_small_coding(octavo: Callable[..., Any]) -> None:
    pytest.importorskip("constriction")
    words = ("quantize", "tiny.py:Tiny", "--method", "ptq", "--coding", "small", "--json")
    plain = octavo(*words, "--bits", "apot5", "--floats", "folded", "-o", "plain.safetensors")
    limit = json.loads(plain.out)["file_bytes"] - 4
    said = octavo(*words, "--budget", f"bytes={limit}", "-o", "net.safetensors")
    result = json.loads(said.out)
    assert Path("net.safetensors").stat().st_size == result["file_bytes"] <= limit
    assert result["rate"] > 0
    assert result["recipe"]["bits"] == "apot5"  # the default, since there is a limit
    assert result["recipe"]["ptq"]["budget"] == {
        "ratio": None, "average_bits": None, "bytes": limit, "bit_ops": None,
    }  # fmt: skip


def test_activations_are_quantized_packed_and_evaluated(octavo: Callable[..., Any]) -> None:
    words = (
        "quantize",
        "tiny.py:Tiny",
        "-o",
        "net.safetensors",
        "--set",
        "activations.bits=4",
        "--set",
        "epochs=0.5",
    )
    result = json.loads(octavo(*words, "--json").out)
    assert set(result["activation_bits"].values()) == {4}
    evaluated = json.loads(
        octavo("evaluate", "net.safetensors", "-t", "tiny.py:Tiny", "--json").out
    )
    assert (evaluated["score"], evaluated["activation_bits"]) == (result["score"], "4")
    assert "bits of activations" in octavo(*words).out
    assert "activation bits  4\n" in octavo("verify", "net.safetensors").out


def test_the_old_word_for_ptq_is_read_with_a_warning(octavo: Callable[..., Any]) -> None:
    new = octavo("quantize", "tiny.py:Tiny", "--method", "ptq", "-o", "new.safetensors")
    assert (new.status, new.err) == (0, "")
    old = octavo("quantize", "tiny.py:Tiny", "--method", "oneshot", "-o", "old.safetensors")
    assert old.status == 0
    assert "oneshot is deprecated and goes in the next version" in old.err
    assert Path("old.safetensors").read_bytes() == Path("new.safetensors").read_bytes()


def test_quantize_again_with_other_settings_is_another_run(octavo: Callable[..., Any]) -> None:
    for bits in ("2", "5", "2"):
        assert (
            octavo("quantize", "tiny.py:Tiny", "--bits", bits, "-o", "net.safetensors").status == 0
        )
        assert set(Packed.load("net.safetensors").plan.values()) == {int(bits)}


def test_quantize_does_not_hand_out_the_run_of_other_weights(
    octavo: Callable[..., Any], refused: Callable[..., str]
) -> None:
    words = ("quantize", "tiny.py:Tiny", "-o", "net.safetensors", "--set", "epochs=0")
    assert octavo(*words).status == 0
    other = Path("tiny.py").read_text().replace("manual_seed(0)", "manual_seed(77)", 1)
    Path("tiny.py").write_text(other)
    said = refused(*words)
    assert said.startswith("runs/quantize-net-")
    assert said.endswith(
        "the task's weights have changed since: delete it or choose another --folder"
    )


def test_a_folder_that_holds_another_run(
    octavo: Callable[..., Any], refused: Callable[..., str]
) -> None:
    assert octavo("run", "r.yaml", "--set", "epochs=0").status == 0
    said = refused("run", "r.yaml", "--set", "epochs=0", "--set", "bits=5")
    assert said == "runs/r holds a run with bits 3, the recipe says 5: choose another --folder"


def test_a_recipe_that_was_mended_runs(
    octavo: Callable[..., Any], refused: Callable[..., str]
) -> None:
    refused("run", "r.yaml", "--set", "bits={nothing: 3}")
    assert octavo("run", "r.yaml", "--set", "control=false").status == 0


def test_training_that_diverges_says_where_and_what_to_do(
    octavo: Callable[..., Any], files: Callable[[], dict[str, str]]
) -> None:
    said = octavo("run", "r.yaml", "--set", "task=tiny.py:Broken", "--set", "retraining.labels=1")
    assert said.status == 2
    assert said.err.startswith(
        "octavo: quantized, stage 1, step 1 of 4: the loss is nan; lower the learning rate"
    )
    assert said.err.count("\n") == 1
    assert set(files()) == {"tiny.py", "r.yaml", "runs", "runs/r", "runs/r/recipe.json"}


def test_the_demo_from_a_fresh_folder_to_its_table(octavo: Callable[..., Any]) -> None:
    """The real thing, in a process of its own; afterwards its file is checked and scored again."""
    program = shutil.which("octavo", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run(
        [program, "demo"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("│")
    ]
    table = {name: values for name, *values in rows}
    assert list(table) == [
        "metric",
        "nominal bits per weight",
        "weights that are zero",
        "stored bits per weight",
        "bytes",
        "times smaller",
        "time",
    ]
    before, control, after = map(float, table["metric"])
    assert min(before, control, after) > 95
    assert before - after < 3
    assert 2 < float(table["nominal bits per weight"][-1]) <= 3
    assert re.search(
        r"search: \S+, the uniform plan \S+; bits: conv1 \d, conv2 \d, conv3 \d, linear \d\n",
        done.stdout,
    )
    assert float(table["stored bits per weight"][-1]) < 2.4
    assert table["bytes"][-1] == f"{Path('runs/demo/packed.safetensors').stat().st_size:,}"
    assert float(table["times smaller"][-1]) > 10
    assert done.stdout.index("│ time") < done.stdout.index(
        "the network: runs/demo/packed.safetensors"
    )
    proposed = re.findall(r"^  octavo (.+?)   ", done.stdout, re.MULTILINE)
    assert len(proposed) == 3
    assert [octavo(*command.split()).status for command in proposed] == [0, 0, 0]
    assert octavo("verify", "runs/demo/packed.safetensors").status == 0
    evaluated = octavo("evaluate", "runs/demo/packed.safetensors", "--task", "digits", "--json")
    assert f"{json.loads(evaluated.out)['score']:.2f}" == table["metric"][-1]


def test_no_code_refuses_a_recipe_with_code_before_it_is_run(refused: Callable[..., str]) -> None:
    Path("evil.py").write_text("import pathlib\npathlib.Path('harm').touch()\nclass Task: pass\n")
    Path("evil.yaml").write_text("task: evil.py:Task\nbits: 3\n")
    said = refused("run", "evil.yaml", "--no-code")
    assert said.startswith("--no-code: task: expected one of digits, cifar10, image_folder")
    assert not Path("harm").exists()
    assert not Path("runs").exists()
