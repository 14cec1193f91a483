"""The application: its commands, and what is said when one of them fails."""

import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from octavo._interruption import Interrupted
from octavo.cli.failures import print_line, print_theirs, warnings_as_lines
from octavo.cli.files import evaluate, export, verify
from octavo.cli.inspecting import inspect
from octavo.cli.reports import compare, report
from octavo.cli.runs import demo, quantize, run
from octavo.cli.searching import search
from octavo.cli.starting import init
from octavo.errors import OctavoError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
COMMANDS = (
    demo, init, inspect, search, quantize, run, evaluate, export, report, compare, verify,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"octavo {version('octavo')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version)
    ] = False,
) -> None:
    """Quantize trained PyTorch networks into small files."""


def main() -> None:
    """Run the command that ``sys.argv`` names.

    An error that octavo raises on purpose, and a file that cannot be read or written, become one
    line on stderr and exit status 2. An error in the user's own task becomes its traceback, without
    octavo's frames, and exit status 1. With ``--debug``, anywhere among the words, the whole
    traceback is shown instead. A warning of octavo becomes one line on stderr. After SIGINT or
    SIGTERM, one line says what was kept, and the exit status is 130 or 143.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a character that it lacks shall end no run
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        with warnings_as_lines():
            app()
    except OctavoError as error:
        if debug:
            raise
        print_line(f"octavo: {error}", "red")
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        if print_theirs(error):
            sys.exit(1)
        if not isinstance(error, OSError):
            raise
        print_line(f"octavo: {_in_words(error)}", "red")
        sys.exit(2)
    except Interrupted as stop:
        print_line(f"octavo: {stop}", "yellow")
        sys.exit(stop.status)


def _in_words(error: OSError) -> str:
    """Return the message of an error of the system without its number."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"
