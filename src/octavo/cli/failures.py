"""The words on stderr where a command fails, or has a warning."""

import contextlib
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo._deprecated import DEPRECATED
from octavo.cli.options import err
from octavo.errors import printable

__all__ = ["print_line", "print_theirs", "warnings_as_lines"]

PACKAGE = Path(__file__).parents[1]


def print_line(text: str, style: str) -> None:
    """Print a text as one line on stderr."""
    err.print(printable(" ".join(text.split())), style=style, soft_wrap=True, markup=False)


def print_theirs(error: BaseException) -> bool:
    """Print the traceback of an error from the user's own code on, without octavo's frames.

    Returns:
        False, and nothing is printed, if the error does not come from the user's code.

    """
    from octavo.runs.user_code import user_traceback

    theirs = user_traceback(error)
    if theirs is None:
        return False
    lines = "".join(traceback.format_exception(type(error), error, theirs)).splitlines()
    err.print("\n".join(map(printable, lines)), soft_wrap=True, markup=False)
    print_line("octavo: the task failed, see above; --debug shows the frames of octavo too", "red")
    return True


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning of octavo as one line; its deprecations too, which Python hides from users
    by default. Other libraries' warnings are shown as ever.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("always", f".*{DEPRECATED}", DeprecationWarning)
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], file: str, *place: Any) -> None:
            if re.search(DEPRECATED, str(message)):
                print_line(f"octavo: {message}", "yellow")
            elif issubclass(category, UserWarning) and Path(file).is_relative_to(PACKAGE):
                print_line(f"octavo: warning: {message}", "yellow")
            else:
                show_others(message, category, file, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
