"""Old public spellings, accepted for one version with a ``DeprecationWarning`` that names the new one."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from octavo.progress import Event, Progress

__all__ = ["renamed_arguments", "warn_renamed"]

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that ``old`` is spelled ``new`` now; an empty ``new`` says that it has no effect any more."""
    now = f"use {new}" if new else "it has no effect any more"
    message = f"{old} is deprecated and goes in the next version: {now}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Accept old keyword arguments of a function: ``old="new"``, or ``old=""`` for one that is ignored now.

    An ``observe`` callback, which took what the step gave, becomes a ``progress`` callback that
    hands it on.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in new_names.keys() & kwargs.keys():
                new, value = new_names[old], kwargs.pop(old)
                warn_renamed(
                    f"{function.__name__}({old}=)", f"{function.__name__}({new}=)" if new else ""
                )
                if new:
                    kwargs[new] = _detail_only(value) if old == "observe" else value
            return function(*args, **kwargs)

        return call

    return decorate


def _detail_only(observe: Any) -> Progress:
    def progress(event: Event) -> None:
        observe(event.detail)

    return progress
