"""Signals that ask a run to stop: SIGINT, which is Ctrl-C, and SIGTERM.

Work that can be saved is deferred to: the signal waits until its next step is done and saved. All
other work stops where it is. A second signal ends the process at once. Nothing is lost even then,
as files are whole or not there.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Interruption", "keeping", "listening"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAIT = b"\nThe step that is under way is finished and saved. Once more ends the process at once.\n"


class Interrupted(BaseException):
    """A signal asked to stop, and what can be saved is saved.

    It is no ``Exception``, so that nobody takes it for an error of theirs.

    Attributes:
        signal: the number of the signal.
        kept: what was kept, in words; empty if nothing was.

    """

    def __init__(self, signal: int, kept: str = "") -> None:
        super().__init__(signal, kept)
        self.signal = signal
        self.kept = kept

    @property
    def status(self) -> int:
        """The exit status of the process: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.signal

    def __str__(self) -> str:
        if not self.kept:
            return "interrupted; nothing was under way that could be kept"
        return f"interrupted; {self.kept}. The same command goes on from there"


class Interruption:
    """The request to stop, as the handler of signals notes it. One that hears no signals never
    asks.

    Attributes:
        requested: the number of the signal that came, or None.

    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False

    def request(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            Interrupted: nothing is deferred.

        """
        if self.requested is not None or _importing(frame):
            os._exit(128 + number)
        self.requested = number
        if not self._deferred:
            raise Interrupted(number)
        os.write(2, WAIT)  # no print: the signal may have come in the middle of one

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals wait, in a block that asks for ``requested`` and stops by itself."""
        before = self._deferred
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = before


@contextlib.contextmanager
def listening() -> Iterator[Interruption]:
    """Handle signals for a while, in the main thread; elsewhere none are heard."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number in SIGNALS if before[number] != signal.SIG_IGN]  # as nohup has it
    try:
        for number in heard:
            signal.signal(number, interruption.request)
        yield interruption
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextlib.contextmanager
def keeping(kept: str) -> Iterator[None]:
    """Say what is kept of a work that is interrupted, unless that was said already."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(stop.signal, stop.kept or kept) from None


def _importing(frame: FrameType | None) -> bool:
    """Tell if a module is being imported: an exception may get lost there, and nothing is kept."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
