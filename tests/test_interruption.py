"""Signals that ask a run to stop, in this process and in another one."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from octavo._interruption import Interrupted, Interruption, listening


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_what_cannot_be_saved(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, listening():
        signal.raise_signal(number)
    assert caught.value.status == status
    assert not isinstance(caught.value, Exception | KeyboardInterrupt)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_can_be_saved(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening() as interruption:
        assert interruption.requested is None
        with interruption.deferred():
            signal.raise_signal(number)
            assert interruption.requested == number
    assert "is finished and saved" in capfd.readouterr().err


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with listening() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.requested is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hear_nothing() -> None:
    heard = []

    def work() -> None:
        with listening() as interruption:
            heard.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [None]


def test_without_signals_nothing_is_ever_requested() -> None:
    interruption = Interruption()
    with interruption.deferred():
        assert interruption.requested is None


def test_what_was_kept_is_said() -> None:
    assert str(Interrupted(2, "step 3 is kept in a.pt")) == (
        "interrupted; step 3 is kept in a.pt. The same command goes on from there"
    )
    assert "nothing was under way that could be kept" in str(Interrupted(2))


TWICE = """
import os, signal
from octavo._interruption import listening
with listening() as interruption, interruption.deferred():
    signal.raise_signal(signal.{number})
    try:
        signal.raise_signal(signal.{number})
    finally:
        os.write(1, b"not at once")
"""
IMPORTING = """
from octavo._interruption import listening
with listening():
    import interrupted_module
"""


def test_a_second_signal_ends_the_process_at_once() -> None:
    for number, status in (("SIGINT", 130), ("SIGTERM", 143)):
        done = subprocess.run(
            [sys.executable, "-c", TWICE.format(number=number)], capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (status, b"")
        assert b"Traceback" not in done.stderr


def test_a_signal_during_an_import_ends_the_process_without_a_traceback(tmp_path) -> None:
    (tmp_path / "interrupted_module.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, b"")
