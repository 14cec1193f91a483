"""Settings of the whole process that several threads may want at a time."""

import contextlib
import threading
from collections.abc import Callable

__all__ = ["ProcessWide"]


class ProcessWide:
    """A context that threads may enter at a time, overlapping or one in another: the first one sets
    what it sets, and the last one puts it back.

    Args:
        change: makes the context that sets something for the whole process.

    """

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0
        self._before = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before.enter_context(self._change())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()
