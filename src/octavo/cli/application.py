"""The application: its commands, and what is said when one of them fails."""

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any

import typer

from octavo._deprecated import DEPRECATED
from octavo.cli.files import evaluate, export, verify
from octavo.cli.models import inspect, search
from octavo.cli.options import err
from octavo.cli.reports import compare, report
from octavo.cli.runs import demo, quantize, run
from octavo.errors import OctavoError, printable
from octavo.runs.interruption import Interrupted

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, run, inspect, search, quantize, export, evaluate, report, compare, verify):
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
    """Fold trained neural networks into powers of two."""


def main() -> None:
    """Run the command that ``sys.argv`` names.

    An error that octavo raises on purpose, and a file that cannot be read or written, become one
    line on stderr and exit status 2; with ``--debug``, anywhere among the words, the traceback is
    shown instead. A deprecated word becomes one line on stderr. After SIGINT or SIGTERM, one line
    says what was kept, and the exit status is 130 or 143.
    """
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        with _deprecations_as_lines():
            app()
    except (OctavoError, OSError) as error:
        if debug:
            raise
        _say(f"octavo: {error}", "red")
        sys.exit(2)
    except Interrupted as stop:
        _say(f"octavo: {stop}", "yellow")
        sys.exit(stop.status)


def _say(text: str, style: str) -> None:
    """Print a text as one line on stderr."""
    err.print(printable(" ".join(text.split())), style=style, soft_wrap=True, markup=False)


@contextlib.contextmanager
def _deprecations_as_lines() -> Iterator[None]:
    """Print octavo's own deprecation warnings, which Python hides from users by default."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", f".*{DEPRECATED}", DeprecationWarning)
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if re.search(DEPRECATED, str(message)):
                _say(f"octavo: {message}", "yellow")
            else:
                show_others(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
