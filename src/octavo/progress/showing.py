"""The argument ``progress`` of public functions: True, a callback, or None."""

import contextlib
from collections.abc import Iterator
from typing import TypeAlias

from octavo.progress.event import Progress, silent

__all__ = ["ProgressLike", "showing"]

ProgressLike: TypeAlias = Progress | bool | None


@contextlib.contextmanager
def showing(progress: ProgressLike) -> Iterator[Progress]:
    """Return the callback that an argument ``progress`` stands for, for a while.

    Args:
        progress: True shows a bar on a terminal and in a notebook with ipywidgets, and lines
            elsewhere; None or False shows nothing; a function is called with each ``Event``.

    Raises:
        TypeError: it is none of these.

    """
    if callable(progress):
        yield progress
    elif progress is None or progress is False:
        yield silent
    elif progress is True:
        from rich.console import Console

        from octavo.progress.display import Display

        with Display(Console(stderr=True, highlight=False)) as display:
            yield display
    else:
        raise TypeError(
            f"progress: expected True, None or a function of an event, got {progress!r}"
        )
