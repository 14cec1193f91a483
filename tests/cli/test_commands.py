"""The commands as people type them: what they print, where, what they leave behind, and what they
say of bad input."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from octavo import cli
from octavo.errors import FormatError
from octavo.formats.width import Apot
from octavo.plan import Plan
from octavo.runs.task import load_task
from octavo.storage.container import VERSION
from octavo.storage.packed import Packed

COMMANDS = ("demo", "run", "inspect", "search", "quantize", "export", "evaluate", "verify")
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
            return nn.Sequential(nn.Linear(5, self.width), nn.ReLU(), nn.Linear(self.width, 3)).eval()

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
    """Runs the entry point in an empty folder with a task and a recipe in it."""
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


@pytest.fixture
def packed(octavo: Octavo) -> Path:
    """A packed file of the tiny task."""
    assert (
        octavo("quantize", "tiny.py:Tiny", "-o", "net.safetensors", "--set", "epochs=0").status == 0
    )
    shutil.rmtree("runs")
    return Path("net.safetensors")


def files() -> dict[str, str]:
    """Everything below the working directory, by name and content."""
    paths = (path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts)
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in paths
    }


def refused(octavo: Octavo, *words: str) -> str:
    """What a command says that refuses: one line on stderr, exit status 2, and no file that was not
    there before."""
    before = files()
    said = octavo(*words)
    assert said.status == 2
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("octavo: ")
    assert files() == before
    return said.err.removeprefix("octavo: ").rstrip("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example_in_its_help(command: str, octavo: Octavo) -> None:
    said = octavo(command, "--help")
    assert said.status == 0
    assert f"Example: octavo {command}" in said.out
    assert said.err == ""


def test_the_version(octavo: Octavo) -> None:
    assert octavo("--version") == (0, f"octavo {version('octavo')}\n", "")


def test_the_demo_says_where_its_folder_is(octavo: Octavo) -> None:
    assert "[default: runs/demo]" in octavo("demo", "--help").out
    assert "default: runs/ and the recipe's name" in octavo("run", "--help").out


def test_without_a_command_all_of_them_are_listed(octavo: Octavo) -> None:
    said = octavo("--help")
    for command in COMMANDS:
        assert f" {command} " in said.out
    alone = octavo()
    assert " verify " in alone.out + alone.err


def test_every_command_of_the_test_is_every_command_there_is() -> None:
    assert {
        command.callback.__name__ for command in cli.app.registered_commands if command.callback
    } == set(COMMANDS)


def test_search_writes_a_plan_within_the_budget_and_shows_it(octavo: Octavo) -> None:
    said = octavo(
        "search",
        "tiny.py:Tiny",
        "--budget",
        "average_bits=3",
        "--pin",
        "2=4",
        "--trials",
        "20",
        "-o",
        "plan.yaml",
    )
    assert (said.status, said.err) == (0, "")
    plan = Plan.load("plan.yaml")
    assert plan["2"] == 4
    assert plan.cost().average_bits <= 3
    assert f"{plan.cost().average_bits:.3f}" in said.out
    assert "written: plan.yaml" in said.out
    as_json = octavo(
        "search",
        "tiny.py:Tiny",
        "--budget",
        "average_bits=3",
        "--pin",
        "2=4",
        "--trials",
        "20",
        "-o",
        "x",
        "--json",
    )
    assert json.loads(as_json.out)["plan"] == dict(plan)


def test_search_takes_bits_of_inputs(octavo: Octavo) -> None:
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


def test_search_and_quantize_take_widths_of_both_grids(octavo: Octavo) -> None:
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
            "oneshot",
            "-o",
            "net.safetensors",
        ).status
        == 0
    )
    assert set(Packed.load("net.safetensors").plan.values()) == {Apot(6)}
    refused = octavo(
        "search", "tiny.py:Tiny", "--options", "4,apot3", "--budget", "average_bits=6", "-o", "y"
    )
    assert refused.status == 2
    assert "options: expected one of apot5, apot6, apot7, apot8, got 'apot3'" in refused.err


@pytest.mark.parametrize(
    "words", [["nothing"], ["quantize", "digits"], ["quantize", "digits", "-o", "x", "--bits", "9"]]
)
def test_words_that_no_command_understands(words: list[str], octavo: Octavo) -> None:
    said = octavo(*words)
    assert (said.status, said.out) == (2, "")
    assert "Traceback" not in said.err


def test_inspect_prints_what_can_be_quantized(octavo: Octavo) -> None:
    said = octavo("inspect", "tiny.py:Tiny", "-O", "width=7")
    assert said.status == 0
    assert [line.split()[1:10:2] for line in said.out.splitlines() if "linear" in line] == [
        ["0", "linear", "7x5", "35", "35"],
        ["2", "linear", "3x7", "21", "21"],
    ]
    assert "biases stay in float" in said.out
    assert "feasible: 2 to 8 bits, 14 to 56 nominal bytes" in said.out


def test_inspect_as_json(octavo: Octavo) -> None:
    said = octavo("inspect", "tiny.py:Tiny", "--json")
    found = json.loads(said.out)
    assert [(row["name"], row["shape"], row["macs"]) for row in found["rows"]] == [
        ("0", [6, 5], 30),
        ("2", [3, 6], 18),
    ]
    assert {skip["name"] for skip in found["skipped"]} == {"0.bias", "2.bias"}
    assert (found["cheapest"]["bytes"], found["dearest"]["bytes"]) == (12, 48)


def test_inspect_does_without_an_example(octavo: Octavo) -> None:
    said = octavo("inspect", "tiny.py:Silent", "--json")
    assert [row["macs"] for row in json.loads(said.out)["rows"]] == [None, None]


def test_inspect_says_why_nothing_can_be_quantized(octavo: Octavo) -> None:
    said = octavo("inspect", "tiny.py:Normed")
    assert said.status == 0
    assert said.out.startswith("no layer can be quantized\n")
    assert "multiply-accumulates" not in said.out
    assert "norms stay in float" in said.out
    assert "feasible" not in said.out


def test_run_ends_in_a_table_and_the_second_time_does_nothing(octavo: Octavo) -> None:
    said = octavo("run", "r.yaml")
    assert (said.status, said.err) == (0, "")
    result = json.loads(Path("runs/r/result.json").read_text())
    assert f"│ {result['float_score']:.2f} │" in " ".join(said.out.split())
    assert "quantized, stage 1/2  step 4/4  epoch 1.00" in said.out
    assert "the network: runs/r/packed.safetensors   the figures: runs/r/result.json" in said.out
    before = files()
    again = octavo("run", "r.yaml")
    assert again.out.startswith("runs/r is complete: nothing to do\n")
    assert again.out.endswith(said.out[said.out.index("full precision against") :])
    assert files() == before


def test_run_as_json_prints_json_only_on_stdout(octavo: Octavo) -> None:
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


def test_run_publishes_beside_the_recipe(octavo: Octavo) -> None:
    Path("bench").mkdir()
    Path("bench/r.yaml").write_text(RECIPE + "publish: results/tiny\ncontrol: false\n")
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
    octavo: Octavo, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("shipped").mkdir()
    Path("shipped/mine.yaml").write_text(RECIPE)
    Path("mine").mkdir()  # a folder of that name is no recipe
    monkeypatch.setattr(cli, "RECIPES", Path("shipped").resolve())
    assert octavo("run", "mine", "--set", "control=false").status == 0
    assert Path("runs/mine/result.json").exists()


def test_quantize_writes_a_file_that_verifies_and_scores_as_it_said(octavo: Octavo) -> None:
    words = (
        "quantize",
        "tiny.py:Tiny",
        "-O",
        "width=7",
        "--bits",
        "4",
        "-o",
        "out/net.safetensors",
        "--set",
        "portions=[0.5, 1]",
    )
    said = octavo(*words, "--json")
    result = json.loads(said.out)
    assert result["recipe"]["options"] == {"width": 7}
    assert (result["nominal_bits"], result["file_bytes"]) == (
        4.0,
        Path("out/net.safetensors").stat().st_size,
    )
    assert octavo("verify", "out/net.safetensors").status == 0
    evaluated = json.loads(
        octavo(
            "evaluate", "out/net.safetensors", "-t", "tiny.py:Tiny", "-O", "width=7", "--json"
        ).out
    )
    assert evaluated["score"] == result["score"]
    assert "written: out/net.safetensors" in octavo(*words).out


def test_activations_are_quantized_packed_and_evaluated(octavo: Octavo) -> None:
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
    assert "activations, bits" in octavo(*words).out
    assert "activation bits  4\n" in octavo("verify", "net.safetensors").out


def test_quantize_again_with_other_settings_is_another_run(octavo: Octavo) -> None:
    for bits in ("2", "5", "2"):
        assert (
            octavo("quantize", "tiny.py:Tiny", "--bits", bits, "-o", "net.safetensors").status == 0
        )
        assert set(Packed.load("net.safetensors").plan.values()) == {int(bits)}


def test_quantize_does_not_hand_out_the_run_of_other_weights(octavo: Octavo) -> None:
    words = ("quantize", "tiny.py:Tiny", "-o", "net.safetensors", "--set", "epochs=0")
    assert octavo(*words).status == 0
    Path("tiny.py").write_text(TASK.replace("manual_seed(0)", "manual_seed(77)", 1))
    said = refused(octavo, *words)
    assert said.startswith("runs/quantize-net-")
    assert said.endswith(
        "the task's weights have changed since: delete it or choose another --folder"
    )


def test_evaluate_and_verify_print_the_figures(octavo: Octavo, packed: Path) -> None:
    network, task = Packed.load(packed), load_task("tiny.py:Tiny")
    model = task.model()
    network.apply(model)
    figures = {
        "layers": 2,
        "weights": 48,
        "nominal_bits": 3.0,
        "stored_bits": round(network.stored_bits, 3),
        "file_bytes": packed.stat().st_size,
        "ratio": round(network.ratio, 2),
    }
    words = ("evaluate", str(packed), "--task", "tiny.py:Tiny")
    assert json.loads(octavo(*words, "--json").out) == {"score": task.score(model), **figures}
    assert json.loads(octavo("verify", str(packed), "--json").out) == {
        "verified": str(packed),
        **figures,
    }
    assert f"score  {round(task.score(model), 3)}\n" in octavo(*words).out
    assert (
        f"  nominal bits  3.0\n   stored bits  {figures['stored_bits']}\n"
        in octavo("verify", str(packed)).out
    )


def test_export_prints_what_the_check_found_and_evaluate_scores_the_file(
    octavo: Octavo, packed: Path
) -> None:
    words = ("export", str(packed), "--task", "tiny.py:Tiny", "-o", "net.onnx")
    made = json.loads(octavo(*words, "--json").out)
    assert made.pop("largest_difference") < 1e-5
    size = Path("net.onnx").stat().st_size
    assert made == {
        "written": "net.onnx",
        "form": "lut",
        "file_bytes": size,
        "same_class": 1.0,
        "inexact_layers": [],
    }
    assert re.search(r"largest difference  \d", octavo(*words, "--form", "fp8").out)
    score = json.loads(octavo("evaluate", str(packed), "-t", "tiny.py:Tiny", "--json").out)["score"]
    evaluated = json.loads(octavo("evaluate", "net.onnx", "-t", "tiny.py:Tiny", "--json").out)
    assert evaluated["score"] == pytest.approx(score, abs=1e-4)


def test_export_to_int8_prints_both_scores(octavo: Octavo, packed: Path) -> None:
    words = (
        "export",
        str(packed),
        "--task",
        "tiny.py:Tiny",
        "--form",
        "int8",
        "-o",
        "net.onnx",
        "--json",
    )
    made = json.loads(octavo(*words).out)
    assert made["score"] == pytest.approx(made["packed_score"], abs=0.2)
    assert made["score"] != made["packed_score"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["export", "tiny.py", "-t", "tiny.py:Tiny", "-o", "x"],
            "tiny.py: expected a safetensors file with octavo's header",
        ),
        (["evaluate", "none.onnx", "-t", "tiny.py:Tiny"], "none.onnx: No such file or directory"),
        (
            ["run", "r.yaml", "--set", "export=[lutt]"],
            "r.yaml: export.0: Input should be 'lut', 'fp8', 'int8', 'float' or 'mx'",
        ),
        (
            ["run", "none.yaml"],
            "none.yaml: no such file, nor one of the recipes that come with octavo: digits-dnq, digits",
        ),
        (["run", "."], ".: not a readable recipe: "),
        (["run", "tiny.py"], "tiny.py: not a readable recipe: "),
        (
            ["run", "r.yaml", "--set", "epoch=3"],
            "r.yaml: unknown key 'epoch' (the nearest is 'epochs')",
        ),
        (["run", "r.yaml", "--set", "epochs"], "--set epochs: expected key=value"),
        (["run", "r.yaml", "--set", "seed=["], "--set seed=[: not a YAML value"),
        (
            ["run", "r.yaml", "--set", "portions=[0.5, 0.4]"],
            "r.yaml: portions: expected shares that rise strictly",
        ),
        (
            ["run", "r.yaml", "--set", "bits={conv9: 3}"],
            "'conv9' matches no layer of Sequential (the nearest is ",
        ),
        (
            ["run", "r.yaml", "--set", "task=digit"],
            "task: expected one of digits, cifar10, image_folder, package.module:Class or",
        ),
        (
            ["run", "r.yaml", "--set", "task=tiny.py:Tinny"],
            "task 'tiny.py:Tinny': tiny.py has no class or function 'Tinny' (the nearest is 'Tiny')",
        ),
        (
            ["run", "r.yaml", "--set", "task=tiny.py:Normed"],
            "BatchNorm1d: expected a model with layers that can be quantized",
        ),
        (
            ["run", "r.yaml", "--set", "task=tiny.py:Lacking"],
            "task 'tiny.py:Lacking': expected the methods model, calibration,",
        ),
        (
            ["run", "r.yaml", "--set", "options.widht=3"],
            "task 'tiny.py:Tiny': expected the options width, name, got 'widht'",
        ),
        (
            ["run", "r.yaml", "--folder", "tiny.py"],
            "tiny.py: expected a folder for the run, or nothing yet, got a file",
        ),
        (
            ["run", "r.yaml", "--json", "--set", "task=tiny.py:NoFile"],
            "task 'tiny.py:NoFile': its model() failed: FileNotFoundError: [Errno 2] No such file or directory: 'weights.pt'",
        ),
        (
            ["inspect", "tiny.py:NoFile"],
            "task 'tiny.py:NoFile': its model() failed: FileNotFoundError: ",
        ),
        (["inspect", "tiny.py:Lacking"], "task 'tiny.py:Lacking': expected the methods"),
        (["inspect", "nothing.py:Tiny"], "task 'nothing.py:Tiny': there is no file nothing.py"),
        (["inspect", "tiny.py:Tiny", "-O", "width"], "--option width: expected key=value"),
        (["inspect", "tiny.py:Tiny", "-O", "=3"], "--option =3: expected key=value"),
        (["inspect", "tiny.py:Tiny", "-O", "width=["], "--option width=[: not a YAML value"),
        (
            ["inspect", "tiny.py:Tiny", "-O", "with=3"],
            "task 'tiny.py:Tiny': expected the options width, name, got 'with'",
        ),
        (
            ["quantize", "tiny.py:Normed", "-o", "x"],
            "BatchNorm1d: expected a model with layers that can be quantized",
        ),
        (
            ["quantize", "tiny.py:Lacking", "-o", "x"],
            "task 'tiny.py:Lacking': expected the methods",
        ),
        (
            ["quantize", "tiny.py:Tiny", "-o", "x", "--set", "order=size"],
            "quantize: order: Input should be 'magnitude', ",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x"],
            "expected exactly one of budget and trade_off, got None and None",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "bits=3"],
            "--budget bits=3: expected one of ratio, average_bits, bytes, bit_ops (the nearest is ",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "average_bits=1"],
            "average_bits=1: no plan within the options costs so little; feasible: 2 to 5 average bits, ",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "bytes=99", "--pin", "1=3"],
            "pin 1: no layer that is searched",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "bytes=99", "--pin", "0=9"],
            "pin 0: expected an integer from 2 to 8",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "ratio=9", "--method", "tpf"],
            "method: expected one of dnq, exact, ",
        ),
        (["evaluate", "none", "-t", "tiny.py:Tiny"], "none: No such file or directory"),
        (["verify", "none"], "none: No such file or directory"),
        (["verify", "."], ".: Is a directory"),
        (
            ["verify", "tiny.py"],
            "tiny.py: expected a safetensors file with octavo's header, found none",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str], said: str, octavo: Octavo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # one line, however narrow the terminal
    assert refused(octavo, *words).startswith(said)


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def newer(data: bytes) -> bytes:
    content, rest = header(data)
    content["__metadata__"]["octavo"] = json.dumps(
        json.loads(content["__metadata__"]["octavo"]) | {"version": 99}
    )
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + rest


def someone_elses(data: bytes) -> bytes:
    content, rest = header(data)
    del content["__metadata__"]
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + rest


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-9], "truncated or damaged"),
    "cut short": (lambda data: data[:20], "not octavo's, or cut or damaged"),
    "empty": (lambda data: b"", "not octavo's, or cut or damaged"),
    "altered": (
        lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        "checksum does not match",
    ),
    "newer": (
        newer,
        f"format version 99 is newer than {VERSION}, the newest this octavo reads: upgrade octavo",
    ),
    "not ours": (someone_elses, "expected a safetensors file with octavo's header, found none"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_file_is_named_with_its_cause(damage: str, octavo: Octavo, packed: Path) -> None:
    spoil, cause = DAMAGE[damage]
    packed.write_bytes(spoil(packed.read_bytes()))
    for words in (["verify", str(packed)], ["evaluate", str(packed), "-t", "tiny.py:Tiny"]):
        said = refused(octavo, *words)
        assert said.startswith(f"{packed}: ")
        assert cause in said


def test_the_wrong_network_for_a_packed_file(octavo: Octavo, packed: Path) -> None:
    wider = refused(octavo, "evaluate", str(packed), "-t", "tiny.py:Tiny", "-O", "width=7")
    assert wider == "0.weight: expected shape (6, 5) as packed, got (7, 5) in the model"
    other = refused(octavo, "evaluate", str(packed), "-t", "tiny.py:Normed")
    assert other == "0.weight: missing in the model; expected the architecture that was packed"


def test_a_folder_that_holds_another_run(octavo: Octavo) -> None:
    assert octavo("run", "r.yaml", "--set", "epochs=0").status == 0
    said = refused(octavo, "run", "r.yaml", "--set", "epochs=0", "--set", "bits=5")
    assert said == "runs/r holds a run with bits 3, the recipe says 5: choose another --folder"


def test_a_recipe_that_was_mended_runs(octavo: Octavo) -> None:
    refused(octavo, "run", "r.yaml", "--set", "bits={nothing: 3}")
    assert octavo("run", "r.yaml", "--set", "control=false").status == 0


def test_training_that_diverges_says_where_and_what_to_do(octavo: Octavo) -> None:
    said = octavo("run", "r.yaml", "--set", "task=tiny.py:Broken", "--set", "retraining.labels=1")
    assert said.status == 2
    assert said.err.startswith(
        "octavo: quantized, stage 1, step 1 of 4: the loss is nan; lower the learning rate"
    )
    assert said.err.count("\n") == 1
    assert set(files()) == {"tiny.py", "r.yaml", "runs", "runs/r", "runs/r/recipe.json"}


@pytest.mark.parametrize(
    "words", [["--debug", "verify", "tiny.py"], ["verify", "tiny.py", "--debug"]]
)
def test_debug_lets_the_traceback_through_wherever_it_stands(
    words: list[str], octavo: Octavo
) -> None:
    with pytest.raises(FormatError, match="expected a safetensors file"):
        octavo(*words)


def test_the_demo_from_a_fresh_folder_to_its_table(octavo: Octavo) -> None:
    """The real thing, in a process of its own; afterwards its file is checked and scored again."""
    program = shutil.which("octavo", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run(
        [program, "demo"], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("│")
    ]
    table = {name: values for name, *values in rows}
    assert list(table) == [
        "score",
        "nominal bits, a weight",
        "zero weights",
        "stored bits, a weight",
        "bytes",
        "times smaller",
        "time",
    ]
    before, control, after = map(float, table["score"])
    assert min(before, control, after) > 95
    assert before - after < 3
    assert 2 < float(table["nominal bits, a weight"][-1]) <= 3
    assert re.search(
        r"search: \S+, the uniform plan \S+; bits: conv1 \d, conv2 \d, conv3 \d, linear \d\n",
        done.stdout,
    )
    assert float(table["stored bits, a weight"][-1]) < 2.4
    assert table["bytes"][-1] == f"{Path('runs/demo/packed.safetensors').stat().st_size:,}"
    assert float(table["times smaller"][-1]) > 10
    assert done.stdout.index("│ time") < done.stdout.index(
        "the network: runs/demo/packed.safetensors"
    )
    assert octavo("verify", "runs/demo/packed.safetensors").status == 0
    evaluated = octavo("evaluate", "runs/demo/packed.safetensors", "--task", "digits", "--json")
    assert f"{json.loads(evaluated.out)['score']:.2f}" == table["score"][-1]
