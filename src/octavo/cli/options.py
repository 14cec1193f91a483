"""The arguments that several commands share, and the functions that read and print values."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from octavo.errors import BudgetError, nearest, printable

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from octavo.plan import Budget
    from octavo.progress import Progress
    from octavo.runs.task import Task

__all__ = [
    "FAST",
    "AsJson",
    "Device",
    "FileCoding",
    "Floats",
    "Limit",
    "NetworkName",
    "Options",
    "Overrides",
    "PackedFile",
    "PlanFile",
    "Quiet",
    "RecipeDevice",
    "TaskName",
    "TaskOption",
    "TensorBoard",
    "err",
    "out",
    "print_figures",
    "print_next",
    "print_tables",
    "print_written",
    "read_budget",
    "task_network",
    "task_options",
    "watched",
]

FAST = "fast"  # the default coding, as ``octavo.ptq.file_form`` has it, whose import takes seconds

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="A ready-made task (digits, cifar10, image_folder, causal_lm, text_classification), "
        "or a class of yours: path/to/file.py:Class or package.module:Class.",
    ),
]
NetworkName = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="A task, ready-made (such as digits) or yours (path/to/file.py:Class); "
        "a network of a library (torchvision:resnet18, timm:NAME, hf:NAME), or what a function "
        "returns (path/to/file.py:function); or the file of a plan (plan.yaml) or of a packed "
        "network (packed.safetensors).",
    ),
]
TaskOption = Annotated[
    str,
    typer.Option(
        "--task", "-t", help="The task that the network belongs to, named as for `octavo inspect`."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-O",
        help="An option of the task: key=value, the value in YAML. May be repeated.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a key of the recipe: key=value, the value in YAML. May be repeated."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where the network runs: auto, cpu, cuda or cuda:1; auto takes a GPU that CUDA sees. "
        "Apple's GPUs have no float64, which octavo needs.",
    ),
]
RecipeDevice = Annotated[
    str | None, typer.Option("--device", help="Instead of the recipe's device.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", help="The file of a plan, as `octavo search` wrote it, edited by hand or not."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the result.")]
TensorBoard = Annotated[
    bool,
    typer.Option(
        help="Write losses, metrics and rewards for TensorBoard too, into the run's folder."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Limit = Annotated[
    int | None,
    typer.Option(
        help="The most bytes that the file may decode to, a byte for each quantized weight. "
        "Default: the largest of 64 times its size, 256 MiB and the size of the task's model.",
        show_default=False,
    ),
]
Floats = Annotated[
    str | None,
    typer.Option(
        help="How the file stores biases and norms: float32, float16 or folded. Default: float32, "
        "or with a limit on the file folded, unless that changes outputs.",
        show_default=False,
    ),
]
FileCoding = Annotated[
    str,
    typer.Option(
        "--coding", help="How the file codes weights: fast, or small for 2 to 7 % fewer bytes."
    ),
]
PackedFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A packed network.", show_default=False)
]


@contextlib.contextmanager
def watched(as_json: bool, quiet: bool) -> "Iterator[Progress]":
    """Show how far a command is: on stderr where stdout is for a script, nowhere if it is quiet.

    Of the processes that torchrun starts, rank 0 alone shows it. It begins with the import of
    PyTorch, which takes seconds.
    """
    from octavo.progress import Event, silent
    from octavo.progress.display import Display

    if quiet or os.environ.get("RANK", "0") != "0":
        yield silent
        return
    with Display(err if as_json else out) as display:
        if "torch" not in sys.modules:
            display(Event("import", message="importing PyTorch"))
        import_module("octavo.runs.run")
        yield display


def task_options(pairs: list[str] | None) -> dict[str, Any]:
    """Read the pairs ``key=value`` of ``--option``."""
    from octavo.runs.overrides import key_value

    return dict(key_value(pair, "--option") for pair in pairs or ())


def task_network(
    task: "Task", name: str, device: str, progress: "Progress | None" = None
) -> "nn.Module":
    """Return the network of a task, which is called ``name``, on a device."""
    from octavo.network.devices import device_named
    from octavo.progress import silent
    from octavo.runs.task import model_of

    return model_of(task, name, progress or silent, device_named(device))


def read_budget(pair: str | None) -> "Budget | None":
    """Read a budget such as ``average_bits=3``."""
    from octavo.plan import Budget
    from octavo.runs.overrides import key_value

    if pair is None:
        return None
    if "=" not in pair:
        raise BudgetError(
            f"--budget {pair}: expected the name of the limit too; write bytes=60000 or "
            "ratio=10 for a limit on the file, average_bits=3 or bit_ops=1e9"
        )
    key, value = key_value(pair, "--budget")
    known = [field.name for field in fields(Budget)]
    if key not in known:
        raise BudgetError(
            f"--budget {pair}: expected one of {', '.join(known)}"
            f"{nearest(key, known, only_alike=True)}"
        )
    return Budget(**{key: value})


def print_figures(figures: dict[str, Any], as_json: bool) -> None:
    """Print figures by name: one a line, or all as one line of JSON."""
    from octavo._io import json_text

    if as_json:
        typer.echo(json_text(figures))
        return
    width = max(14, *map(len, figures))
    for key, value in figures.items():
        name = key.replace("_", " ")
        out.print(f"{name:>{width}}  {printable(_shown(value))}", soft_wrap=True, markup=False)


def print_tables(*tables: "Table") -> None:
    """Print tables; where the terminal is too narrow for one, its lines run over."""
    from octavo.report.tables import uncut

    for table in tables:
        out.print(uncut(table), crop=False)


def print_next(words: Sequence[str]) -> None:
    """Say which command may come next, so that it can be pasted."""
    out.print(f"next: {printable(shlex.join(words))}", soft_wrap=True, markup=False)


def print_written(path: Path) -> None:
    """Say which file was written."""
    out.print(f"written: {printable(str(path))}", soft_wrap=True, markup=False)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, float) and 0 < abs(value) < 1:
        return f"{value:.1e}" if abs(value) < 0.001 else f"{value:.4g}"
    if isinstance(value, int | float):
        return f"{round(value, 3):,}"
    return str(value)
