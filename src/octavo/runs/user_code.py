"""The place in the user's own code where an error was raised.

Between octavo and the line of a task that failed lie dozens of frames of octavo, torch and the
command line. A user wants the frames that are their own, and those of what they call.
"""

import sys
import sysconfig
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from octavo.errors import brief

__all__ = ["told", "user_traceback"]

BETWEEN = ("octavo", "typer", "click", "rich", "torch")  # packages that call the user's code


def user_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error from the first frame of the user's code on; None if no such
    frame is in it.
    """
    folders = [_folder(name) for name in BETWEEN if find_spec(name) is not None]
    trace = error.__traceback__
    inside = False  # the frames above octavo's first are those of whoever called it
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        ours = any(Path(file).is_relative_to(folder) for folder in folders)
        inside = inside or Path(file).is_relative_to(folders[0])
        if inside and not ours and not _is_pythons_own(file):
            return trace
        trace = trace.tb_next
    return None


def told(error: BaseException) -> str:
    """Return the kind and the message of an error in one line, with its place in the user's code:
    ``ValueError: no such size (task.py, line 12)``.
    """
    theirs = user_traceback(error)
    if theirs is None:
        return brief(error)
    entry = [
        frame
        for frame in traceback.extract_tb(theirs)
        if frame.filename == theirs.tb_frame.f_code.co_filename
    ][-1]
    return f"{brief(error)} ({Path(entry.filename).name}, line {entry.lineno})"


def _folder(package: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else Path()


def _is_pythons_own(file: str) -> bool:
    """Tell if a file belongs to the standard library, which imports modules and enters contexts."""
    if file.startswith("<") or not Path(file).is_file():
        return True
    installed = any(Path(file).is_relative_to(path) for path in map(Path, _site_packages()))
    standard = Path(sysconfig.get_path("stdlib"))
    return Path(file).is_relative_to(standard) and not installed


def _site_packages() -> list[str]:
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
