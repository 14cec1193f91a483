"""A setting of the process is put back by the last of several threads, whichever that is."""

import contextlib
from collections.abc import Iterator

import pytest

from octavo.network.process_wide import ProcessWide


def test_the_first_sets_it_and_the_last_puts_it_back() -> None:
    calls: list[str] = []

    @contextlib.contextmanager
    def change() -> Iterator[None]:
        calls.append("set")
        yield
        calls.append("back")

    setting = ProcessWide(change)
    one = contextlib.ExitStack()
    other = contextlib.ExitStack()
    one.enter_context(setting)
    other.enter_context(setting)
    one.close()  # the one that came first goes first, as threads may
    assert calls == ["set"]
    other.close()
    assert calls == ["set", "back"]
    with setting, setting:
        pass
    assert calls == ["set", "back"] * 2


def test_a_change_that_fails_is_tried_again_by_the_next() -> None:
    calls: list[str] = []

    @contextlib.contextmanager
    def change() -> Iterator[None]:
        calls.append("set")
        if len(calls) == 1:
            raise OSError
        yield

    setting = ProcessWide(change)
    with pytest.raises(OSError), setting:  # noqa: PT011 - it is the one above
        pass
    with setting:
        pass
    assert calls == ["set", "set"]
