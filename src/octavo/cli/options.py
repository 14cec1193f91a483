"""The arguments that several commands share, and the functions that read and print values."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from octavo.errors import printable

__all__ = [
    "AsJson",
    "Limit",
    "Options",
    "Overrides",
    "PackedFile",
    "TaskName",
    "TaskOption",
    "err",
    "out",
    "print_figures",
    "print_written",
    "task_options",
]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

TaskName = Annotated[
    str,
    typer.Argument(
        help="A ready-made task (digits, cifar10, image_folder, causal_lm, text_classification), "
        "or a class of yours: path/to/file.py:Class or package.module:Class."
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Limit = Annotated[
    int | None,
    typer.Option(
        help="The most bytes that the file may decode to, a byte for each quantized weight. "
        "Default: the largest of 64 times its size, 256 MiB and the size of the task's model.",
        show_default=False,
    ),
]
PackedFile = Annotated[Path, typer.Argument(help="A packed network.", show_default=False)]


def task_options(pairs: list[str] | None) -> dict[str, Any]:
    """Read the pairs ``key=value`` of ``--option``."""
    from octavo.runs.recipe import key_value

    return dict(key_value(pair, "--option") for pair in pairs or ())


def print_figures(figures: dict[str, Any], as_json: bool) -> None:
    """Print figures by name: one a line, or all as one line of JSON."""
    if as_json:
        typer.echo(json.dumps(figures))
        return
    width = max(14, *map(len, figures))
    for key, value in figures.items():
        name = key.replace("_", " ")
        out.print(f"{name:>{width}}  {printable(_shown(value))}", soft_wrap=True, markup=False)


def print_written(path: Path) -> None:
    """Say which file was written."""
    out.print(f"written: {printable(str(path))}", soft_wrap=True, markup=False)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, int | float):
        return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{round(value, 3):,}"
    return str(value)
