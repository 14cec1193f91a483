"""Warnings that a user reads once, where several functions of octavo have the same to say."""

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

__all__ = ["warn", "warning_once"]

# The warnings so far within the outermost ``warning_once``; None outside of any.
_shown: ContextVar[set[str] | None] = ContextVar("_shown", default=None)


@contextlib.contextmanager
def warning_once() -> Iterator[None]:
    """Show each warning that :func:`warn` gives once in a ``with`` block, or in a function that it
    decorates.

    Python forgets what it has shown when a filter of warnings changes, as scipy's solver does.
    """
    if _shown.get() is not None:
        yield
        return
    token = _shown.set(set())
    try:
        yield
    finally:
        _shown.reset(token)


def warn(message: str) -> None:
    """Give a warning, once within the outermost :func:`warning_once`."""
    shown = _shown.get()
    if shown is not None:
        if message in shown:
            return
        shown.add(message)
    warnings.warn(message, UserWarning, stacklevel=1)
