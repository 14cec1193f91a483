"""The event that a long computation reports, and the callback that takes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Event", "Progress", "silent"]


@dataclass(frozen=True)
class Event:
    """The beginning of a long computation, or one step of it that was just finished.

    Attributes:
        phase: the computation, in one word: ``"calibrate"``, ``"search"``, ``"retrain"``.
        done: how many of its steps are finished; 0 announces that it begins.
        total: how many steps it has at most; 0 where that is not known.
        message: what happened, in words; empty where ``detail`` says it.
        detail: the outcome of the step, such as a ``LayerResult`` or a ``Trial``.

    """

    phase: str
    done: int = 0
    total: int = 0
    message: str = ""
    detail: object = None


Progress: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore the event; this is the callback where the caller wants none."""
