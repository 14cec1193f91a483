"""The application: its help, its version, its errors and its deprecated words."""

import importlib.util
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from octavo import cli
from octavo._deprecated import warn_renamed
from octavo.deploy.forms import FORMS
from octavo.dnq.settings import METHODS
from octavo.errors import FormatError

COMMANDS = (
    "demo",
    "init",
    "inspect",
    "search",
    "quantize",
    "run",
    "evaluate",
    "export",
    "report",
    "compare",
    "verify",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example_in_its_help(
    command: str, octavo: Callable[..., Any]
) -> None:
    said = octavo(command, "--help")
    assert said.status == 0
    assert f"Example: octavo {command}" in said.out
    assert said.err == ""


FIRST_LINES = {
    "demo": (
        "Train a small network on handwritten digits, learn the bits of its layers, quantize it, "
        "and show what it cost."
    ),
    "init": (
        "Write a task and a recipe to begin with, for your own network: my_task.py and "
        "my_recipe.yaml."
    ),
    "inspect": (
        "Show which layers of a network can be quantized, which cannot and why, and which budgets "
        "are feasible. The file of a plan, and the layers of a packed file, are shown as a table."
    ),
    "search": "Learn how many bits each layer of a task's network gets, and write the plan.",
    "quantize": (
        "Quantize a task's network with octavo's default settings and write the packed file."
    ),
    "run": ("Do everything that a recipe says. The same command continues a run that was stopped."),
    "evaluate": (
        "Load a packed network into a task's model, or an ONNX file into ONNX Runtime, and score "
        "it."
    ),
    "export": (
        "Write a packed network as ONNX, MXFP4 tensors, a folder of transformers or GGUF, and "
        "check it against the network."
    ),
    "report": (
        "Write the page of a finished run: one HTML file that opens offline, with charts and "
        "tables."
    ),
    "compare": (
        "Compare finished runs: their metric against the size of their files, their bits, their "
        "recipes. The page is one HTML file that opens offline."
    ),
    "verify": "Check a packed file: its structure, its version and every checksum.",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_lines_of_the_help(
    command: str, octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read more often than any other text of octavo; in 80 columns they are whole too."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = octavo(command, "--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    usage, _, text = " ".join("\n".join(lines).split()).partition("] ")
    assert f"octavo {command} [OPTIONS" in usage.replace(".octavo", " octavo")
    assert f" {FIRST_LINES[command]} " in f" {text} "


def test_the_version(octavo: Callable[..., Any]) -> None:
    assert octavo("--version") == (0, f"octavo {version('octavo')}\n", "")


def test_without_a_command_all_of_them_are_listed(octavo: Callable[..., Any]) -> None:
    said = octavo("--help")
    for command in COMMANDS:
        assert f" {command} " in said.out
    alone = octavo()
    assert " verify " in alone.out + alone.err


def test_every_command_of_the_test_is_every_command_there_is() -> None:
    commands = [command.callback for command in cli.app.registered_commands]
    assert [command.__name__ for command in commands if command] == list(COMMANDS)


def test_the_entry_point_is_the_function_main() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    scripts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"octavo": "octavo.cli:main"}
    assert callable(cli.main)
    assert importlib.util.find_spec("octavo.cli.main") is None


@pytest.mark.parametrize(("command", "words"), [("search", METHODS), ("export", tuple(FORMS))])
def test_the_help_names_every_method_and_form(
    command: str, words: tuple[str, ...], octavo: Callable[..., Any]
) -> None:
    """The help has a list of its own, as it must not import what knows them."""
    shown = " ".join(octavo(command, "--help").out.replace("│", " ").split())
    assert f"{', '.join(words[:-1])} or {words[-1]}" in shown


@pytest.mark.parametrize(
    "words", [["nothing"], ["quantize", "digits"], ["quantize", "digits", "-o", "x", "--bits", "9"]]
)
def test_words_that_no_command_understands(words: list[str], octavo: Callable[..., Any]) -> None:
    said = octavo(*words)
    assert (said.status, said.out) == (2, "")
    assert "Traceback" not in said.err


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
            "r.yaml: export.0: Input should be 'lut', 'fp8', 'int8', 'float', 'mx', 'hf' or 'gguf'",
        ),
        (
            ["run", "none.yaml"],
            (
                "none.yaml: no such file, nor one of the recipes that come with octavo: "
                "digits-dnq, digits"
            ),
        ),
        (["run", "."], ".: expected a recipe, got a folder; a recipe is a YAML file"),
        (["run", "tiny.py"], "tiny.py: expected a recipe, got a file of Python; "),
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
            "'conv9' matches no layer of Sequential; expected 0 or 2",
        ),
        (
            ["run", "r.yaml", "--set", "task=digit"],
            "task: expected one of digits, cifar10, image_folder, causal_lm, ",
        ),
        (
            ["run", "r.yaml", "--set", "task=tiny.py:Tinny"],
            (
                "task 'tiny.py:Tinny': tiny.py has no class or function 'Tinny' "
                "(the nearest is 'Tiny')"
            ),
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
            (
                "task 'tiny.py:NoFile': its model() failed: FileNotFoundError: [Errno 2] "
                "No such file or directory: 'weights.pt'"
            ),
        ),
        (
            ["inspect", "tiny.py:NoFile"],
            "task 'tiny.py:NoFile': its model() failed: FileNotFoundError: ",
        ),
        (
            ["quantize", "tiny.py:Tiny", "-o", "."],
            ".: expected a file to write, or nothing yet; it is a folder",
        ),
        (["inspect", "none.safetensors"], "none.safetensors: No such file or directory"),
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
            "quantize: order: expected one of magnitude, ",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "ratio=9", "--trade-off", "1"],
            "expected one of budget and trade_off, got both: ratio=9 and 1.0",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "60000"],
            "--budget 60000: expected the name of the limit too; write bytes=60000 or ratio=10",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "bits=3"],
            "--budget bits=3: expected one of ratio, average_bits, bytes, bit_ops (the nearest is ",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "average_bits=1"],
            (
                "average_bits=1: no plan within the options costs so little; "
                "feasible: 2 to 5 average bits, "
            ),
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "bytes=99", "--pin", "1=3"],
            "'1' matches no layer that is searched",
        ),
        (
            ["search", "tiny.py:Tiny", "-o", "x", "--budget", "bytes=99", "--pin", "0=9"],
            "pin 0: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8",
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
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # one line, however narrow the terminal
    assert refused(*words).startswith(said)


@pytest.mark.parametrize(
    "words", [["--debug", "verify", "tiny.py"], ["verify", "tiny.py", "--debug"]]
)
def test_debug_lets_the_traceback_through_wherever_it_stands(
    words: list[str], octavo: Callable[..., Any]
) -> None:
    with pytest.raises(FormatError, match="expected a safetensors file"):
        octavo(*words)


def test_a_deprecated_word_is_one_line_on_stderr(
    octavo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other warnings are shown as ever: here, they are errors."""
    monkeypatch.setattr(
        "octavo.storage.packed.Packed.load", lambda *_, **__: warn_renamed("old", "new")
    )
    monkeypatch.setattr("octavo.report.tables.packed_rows", lambda _: {})
    said = octavo("verify", "tiny.py", "--json")
    assert (said.status, said.out) == (0, '{"verified": "tiny.py"}\n')
    assert said.err == "octavo: old is deprecated and goes in the next version: use new\n"
    monkeypatch.setattr(
        "octavo.storage.packed.Packed.load", lambda *_, **__: warnings.warn("other", stacklevel=2)
    )
    said = octavo("verify", "tiny.py")
    assert (said.status, "UserWarning: other" in said.err) == (1, True)


def test_the_package_is_a_program_too() -> None:
    words = [sys.executable, "-m", "octavo", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"octavo {version('octavo')}\n"


def test_a_character_that_the_output_lacks_is_escaped(
    octavo: Callable[..., Any], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a pipe on Windows: the bar of a search would end it, and so would a file's name."""
    packed.rename("ü.safetensors")
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    assert octavo("verify", "ü.safetensors").status == 0
    sys.stdout.flush()
    assert b"verified  \\xfc.safetensors" in written.getvalue()
