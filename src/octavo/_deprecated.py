"""Old public spellings, which are accepted for one version with a ``DeprecationWarning``."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from octavo.progress import Event, Progress

__all__ = ["DEPRECATED", "renamed_arguments", "warn_renamed"]

DEPRECATED = "is deprecated and goes in the next version"  # in every warning of this module

VALUES = {("per", "layer"): "tensor"}  # an argument and its old value to the new value

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that ``old`` is spelled ``new`` now; an empty ``new`` says that it has no effect."""
    now = f"use {new}" if new else "it has no effect any more"
    message = f"{old} {DEPRECATED}: {now}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Accept old keyword arguments of a function: ``old="new"``, or ``old=""`` for one that is
    ignored now.

    An old ``observe`` callback, which took the outcome of a step, becomes a ``progress`` callback
    that hands on the outcome in each event. An old value such as ``per="layer"`` is replaced too.

    Raises (from the decorated function):
        TypeError: the old and the new argument are both given.

    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                value = kwargs.pop(old)
                warn_renamed(f"{name}({old}=)", f"{name}({new}=)" if new else "")
                if new in kwargs:
                    raise TypeError(f"{name}: {old}= and {new}= are one argument; give {new}= only")
                if new:
                    kwargs[new] = _detail_only(value) if old == "observe" else value
            for (argument, old_value), new_value in VALUES.items():
                if kwargs.get(argument) == old_value:
                    warn_renamed(f'{argument}="{old_value}"', f'{argument}="{new_value}"')
                    kwargs[argument] = new_value
            return function(*args, **kwargs)

        return call

    return decorate


def _detail_only(observe: Any) -> Progress:
    """Return the progress callback that calls ``observe`` with the outcome of each step."""

    def progress(event: Event) -> None:
        observe(event.detail)

    return progress
